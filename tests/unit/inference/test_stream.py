"""Encoding in bounded memory: spectrograms without seams, pieces of many clips in one batch, errors that cost one file."""

import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import published_name, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import melody
from torch.utils._python_dispatch import TorchDispatchMode

from m2d.audio import decoder
from m2d.audio.framing import segments
from m2d.inference import stream
from m2d.inference.runtime import RuntimeM2D
from m2d.inference.stream import Sink, StreamEncoder, check_finite, encode_files, log_mel_of

# Seconds until a thread that never comes fails a test.
TIMEOUT = 60


class Collected(Sink):
    """Keeps the embeddings of each file."""

    def __init__(self, paths):
        super().__init__(paths)
        self.parts, self.sizes = {}, {}

    def put(self, clip, step, embeddings):
        self.parts.setdefault(clip, {})[step] = embeddings

    def complete(self, clip, samples, frames):
        self.sizes[clip] = samples, frames

    def embeddings(self, clip):
        return torch.cat([self.parts[clip][step] for step in sorted(self.parts[clip])])


@pytest.fixture(scope="module")
def runtime(weights):
    return RuntimeM2D(weight_file=weights)


def add_clip(encoder, stretches):
    """The next clip, from its beginning to its end."""
    encoder.start()
    for segment in encoder.framing(stretches):
        encoder.add(segment)
    encoder.end()


def in_stretches(audio, cuts):
    return np.split(audio, sorted(cut for cut in set(cuts) if 0 < cut < len(audio)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40_000), st.lists(st.integers(1, 40_000), max_size=8), st.sampled_from([1, 3, 48]))
def test_a_spectrogram_made_of_stretches_is_that_of_the_whole(runtime, samples, cuts, unit):
    audio = melody(3, 16000)[:samples]
    parts = list(segments(in_stretches(audio, cuts), runtime.front_end, unit))
    lms, starts = log_mel_of(parts, runtime)
    found = torch.cat([lms[:, start : start + part.frames] for start, part in zip(starts, parts, strict=True)], dim=1)
    expected = runtime.to_feature(torch.from_numpy(audio)[None])[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert sum(part.samples for part in parts) == samples
    assert all(part.frames % unit == 0 for part in parts[:-1])
    assert len(parts) == 1 or len(in_stretches(audio, cuts)) > 1


class Operations(TorchDispatchMode):
    """Counts what a device would be asked to do: all but views."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def test_spectrograms_of_many_clips_take_one_copy_each_and_the_rest_once(runtime):
    counts = []
    for clips in (1, 5, 9):
        parts = [next(segments([melody(1 + i / 10, 16000)], runtime.front_end)) for i in range(clips)]
        with Operations() as operations:
            log_mel_of(parts, runtime)
        counts.append(operations.count)
    assert counts[1] - counts[0] == counts[2] - counts[1] == 4


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 80_000), st.lists(st.integers(1, 80_000), max_size=4)), min_size=1, max_size=4))
@torch.no_grad()
def test_clips_in_stretches_have_the_runtimes_embeddings(runtime, clips):
    sink = Collected([Path(str(i)) for i in range(len(clips))])
    encoder = StreamEncoder(runtime, 3, sink)
    sounds = [melody(5, 16000)[:samples] for samples, _ in clips]
    for audio, (_, cuts) in zip(sounds, clips, strict=True):
        add_clip(encoder, in_stretches(audio, cuts))
    encoder.flush()
    for i, audio in enumerate(sounds):
        expected = runtime(torch.from_numpy(audio)[None])[0]
        torch.testing.assert_close(sink.embeddings(i), expected, rtol=1e-3, atol=1e-3)
        assert sink.sizes[i][0] == len(audio)


@pytest.mark.parametrize("samples", [5000, 16000, 16160, 30_000])
@torch.no_grad()
def test_streams_follow_the_rule_of_dur_frames(weights, samples):
    runtime = RuntimeM2D(weight_file=weights, dur_frames=101)
    sink = Collected([Path("x")])
    encoder = StreamEncoder(runtime, 3, sink)
    add_clip(encoder, [melody(2, 16000)[:samples]])
    encoder.flush()
    expected = runtime(torch.from_numpy(melody(2, 16000)[:samples])[None])[0]
    torch.testing.assert_close(sink.embeddings(0), expected, rtol=1e-3, atol=1e-3)


def encode_all(runtime, lengths, batch_size):
    encoder = StreamEncoder(runtime, batch_size, Collected([Path("x")] * len(lengths)))
    for seconds in lengths:
        add_clip(encoder, [melody(seconds, 16000)])
        yield encoder
    encoder.flush()


def test_pieces_of_different_clips_share_batches(runtime, monkeypatch):
    sizes, encode = [], runtime.encode_lms

    def spy(lms, **options):
        sizes.append(tuple(lms.shape[::3]))
        return encode(lms, **options)

    monkeypatch.setattr(runtime, "encode_lms", spy)
    for _ in encode_all(runtime, (2.5, 2.5, 5, 2.5, 2.6, 0.3), batch_size=4):
        pass
    assert sorted(sizes) == [(1, 32), (1, 64), (1, 96), (2, 208), (3, 48), (4, 208)]


@pytest.mark.parametrize("ahead", [1, 3])
def test_a_device_that_works_ahead_gives_the_same_embeddings(runtime, ahead):
    sinks = []
    for batches in (0, ahead):
        sinks.append(Collected([Path("x")] * 6))
        encoder = StreamEncoder(runtime, 2, sinks[-1], ahead=batches)
        for seconds in (2.5, 0.3, 5, 2.5, 2.6, 2.5):
            add_clip(encoder, [melody(seconds, 16000)])
        encoder.flush()
    there, ahead_of_it = sinks
    assert there.sizes == ahead_of_it.sizes and len(there.sizes) == 6
    assert all(torch.equal(there.embeddings(clip), ahead_of_it.embeddings(clip)) for clip in range(6))


def test_the_next_batch_is_encoded_before_the_last_ones_embeddings_are_waited_for(runtime, monkeypatch):
    events, encode = [], runtime.encode_lms
    monkeypatch.setattr(runtime, "encode_lms", lambda lms, **how: events.append("encode") or encode(lms, **how))
    sink = Collected([Path("x")] * 3)
    monkeypatch.setattr(sink, "put", lambda clip, *_: events.append(f"take {clip}"))
    encoder = StreamEncoder(runtime, 1, sink, ahead=1)
    for _ in range(3):
        add_clip(encoder, [melody(2.08, 16000)])
    encoder.flush()
    assert events[:3] == ["encode", "encode", "take 0"]
    assert events[-1] == "take 2"


def test_pieces_of_a_file_that_fails_are_dropped_when_they_come_back(runtime):
    sink = Collected([Path("good"), Path("bad"), Path("fine")])
    encoder = StreamEncoder(runtime, 1, sink, ahead=8)
    add_clip(encoder, [melody(5, 16000)])
    encoder.start()
    encoder.add(next(encoder.framing([melody(5, 16000)] * 2)))
    encoder.abandon("it is broken")
    add_clip(encoder, [melody(5, 16000)])
    assert not sink.parts
    encoder.flush()
    assert sorted(sink.sizes) == sorted(sink.parts) == [0, 2] and sink.left_out == [Path("bad")]


def test_few_pieces_wait_whatever_their_lengths(runtime, monkeypatch):
    monkeypatch.setattr(stream, "_WAITING_BATCHES", 1)
    for encoder in encode_all(runtime, [0.16 * (i + 1) for i in range(13)], batch_size=3):
        assert sum(map(len, encoder._waiting.values())) <= 3


def test_an_error_in_the_middle_of_a_file_leaves_out_that_file_alone(runtime, tmp_path, monkeypatch, caplog):
    """Of whatever kind the error is: some of the file's pieces wait to be encoded then, together with others'."""
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", melody(5, 16000), 16000)
    opened = decoder.open_audio

    class Failing:
        def __init__(self, path, rate):
            self.stream = opened(path, rate)
            self.warnings = []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.__exit__()

        def __iter__(self):
            yield from np.array_split(next(iter(self.stream)), 2)
            raise MemoryError("cannot allocate 9 TB")

    fails = tmp_path / "1.wav"
    monkeypatch.setattr(decoder, "open_audio", lambda path, rate: (Failing if path == fails else opened)(path, rate))
    monkeypatch.setattr(decoder, "_STRETCH", 1)
    sink = Collected([tmp_path / f"{i}.wav" for i in range(4)])
    encode_files(runtime, sink, batch_size=16, workers=2)
    assert sink.left_out == [fails] and sorted(sink.sizes) == [0, 2, 3] and sorted(sink.parts) == [0, 2, 3]
    assert f"left out: {fails}: MemoryError cannot allocate 9 TB" in caplog.text


def test_a_batch_that_does_not_fit_names_the_flag(runtime, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "x.wav", melody(1, 16000), 16000)

    def fail(lms, **_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(runtime, "encode_lms", fail)
    with pytest.raises(ValueError, match="out of memory while encoding 1 pieces.*lower --batch_size"):
        encode_files(runtime, Collected([tmp_path / "x.wav"]), batch_size=4, workers=1)


def test_decoding_encoding_and_writing_overlap(runtime, tmp_path, monkeypatch):
    """While the host waits for a batch, the device has the next one and files are decoded; results are written meanwhile."""
    files, waits, launched, events = 8, threading.Event(), [], []
    decoded_meanwhile, opened = threading.Event(), decoder.open_audio

    def open_audio(path, rate):
        if path.name == "7.wav":  # decoded only once the host waits for the device, which is not done before
            assert waits.wait(TIMEOUT)
            decoded_meanwhile.set()
        return opened(path, rate)

    class OnDevice:
        def __init__(self, *tensors):
            self.batch, self.tensors = len(launched), tensors
            launched.append(self)

        def get(self):
            events.append(f"wait for {self.batch} of {len(launched)}")
            waits.set()
            assert decoded_meanwhile.wait(TIMEOUT)
            return self.tensors

    monkeypatch.setattr(decoder, "open_audio", open_audio)
    monkeypatch.setattr(stream, "OnHost", OnDevice)
    monkeypatch.setattr(stream, "StreamEncoder", partial(StreamEncoder, ahead=1))
    for i in range(files):
        soundfile.write(tmp_path / f"{i}.wav", melody(2.07, 16000), 16000)
    sink = Collected([tmp_path / f"{i}.wav" for i in range(files)])
    monkeypatch.setattr(sink, "put", lambda clip, *_: events.append(f"write {clip}"))
    encode_files(runtime, sink, batch_size=2, workers=4)
    assert events == [
        *["wait for 0 of 2", "write 0", "write 1", "wait for 1 of 3", "write 2", "write 3"],
        *["wait for 2 of 4", "write 4", "write 5", "wait for 3 of 4", "write 6", "write 7"],
    ]


def test_files_decoded_in_processes_have_the_same_embeddings(runtime, tmp_path, monkeypatch):
    for i, seconds in enumerate((0.01, 2.07, 5, 40)):
        soundfile.write(tmp_path / f"{i}.wav", melody(seconds, 16000), 16000)
    sinks = []
    for in_processes in (False, True):
        monkeypatch.setattr(stream, "decodes_in_processes", lambda *_, how=in_processes: how)
        sinks.append(Collected(sorted(tmp_path.glob("*.wav"))))
        encode_files(runtime, sinks[-1], batch_size=2, workers=2)
    threads, processes = sinks
    assert processes.sizes == threads.sizes
    torch.testing.assert_close(processes.parts, threads.parts)


def test_beside_a_gpu_each_core_decodes(monkeypatch):
    found = []
    for cores in (1, 2, 64):
        monkeypatch.setattr(stream, "usable_cores", lambda cores=cores: cores)
        found.append([stream.default_workers(on_cuda) for on_cuda in (False, True)])
    assert found == [[4, 1], [4, 2], [4, 16]]


def test_a_second_ctrl_c_while_decoding_ends_is_no_other_error(runtime, tmp_path, monkeypatch):
    def first(encoder):
        raise KeyboardInterrupt("first")

    def interrupted(paths, *_):
        try:
            yield decoded
        finally:
            raise KeyboardInterrupt("second")

    soundfile.write(tmp_path / "x.wav", melody(1, 16000), 16000)
    decoded = list(stream.decode_ahead([tmp_path / "x.wav"], 16000, 1))[0]
    monkeypatch.setattr(stream, "decode_ahead", interrupted)
    monkeypatch.setattr(StreamEncoder, "start", first)
    with pytest.raises(KeyboardInterrupt, match="second"):
        encode_files(runtime, Collected([tmp_path / "x.wav"]), batch_size=1, workers=1)


@pytest.mark.parametrize("batch_size, workers", [(0, 1), (1, 0), (1, -1)])
def test_counts_below_one_are_refused(runtime, batch_size, workers):
    """Without a worker, the first file would be waited for without end."""
    with pytest.raises(ValueError, match="--batch_size and --workers are at least 1"):
        encode_files(runtime, Collected([Path("x.wav")]), batch_size, workers)


@pytest.mark.parametrize("name", ["blocks.3.mlp.fc1.weight", "pos_embed"])
def test_weights_with_nan_are_refused_before_any_file(weights, tmp_path, name):
    saved = torch.load(weights, weights_only=False)
    saved["model"][name].view(-1)[-1] = float("nan")
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    torch.save(saved, path)
    with pytest.raises(ValueError, match=f"w.pth holds numbers that are not finite, in backbone.{name}"):
        check_finite(RuntimeM2D(weight_file=path))


def test_a_model_that_overflows_is_refused(tmp_path):
    runtime = RuntimeM2D(weight_file=write_checkpoint(tmp_path))
    with torch.no_grad():
        for block in runtime.backbone.blocks:
            block.mlp.fc2.weight.fill_(1e38)
    with pytest.raises(ValueError, match="gives embeddings that are not finite numbers"):
        check_finite(runtime)
