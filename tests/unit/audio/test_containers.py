"""Files that a decoder alone would read in part: each is read whole, or what is left out is named."""

import io
import struct

import numpy as np
import pytest
import soundfile
from audio_files import sound, write
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.audio import decode
from m2d.audio.containers.layout import read_layout
from m2d.audio.containers.view import FileView
from m2d.audio.decode import load_audio, open_audio

OGG = {"vorbis": {"format": "OGG", "subtype": "VORBIS"}, "opus": {"format": "OGG", "subtype": "OPUS"}}


def join(path, *parts):
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def encoded(path, waveform, rate, **options):
    with soundfile.SoundFile(path, "w", rate, 1 if waveform.ndim == 1 else waveform.shape[1], **options) as file:
        for begin in range(0, len(waveform), rate):  # libsndfile's Ogg encoders overflow the stack on long blocks
            file.write(waveform[begin : begin + rate])
    return path


def without_tag(path):
    content = path.read_bytes()
    assert b"Xing" in content[:64] or b"Info" in content[:64]
    path.write_bytes(content[content.find(content[:2], 150) :])
    return path


def samples_of(path, rate):
    with open_audio(path, rate) as stream:
        waveform = np.concatenate(list(stream))
    assert stream.warnings == [] and stream.seconds_left_out == 0
    return waveform


def share_of_difference(waveform, expected):
    """The share of samples that differ by more than a lossy decoder's settling."""
    length = min(len(waveform), len(expected))
    return (np.abs(waveform[:length] - expected[:length]) > 1e-3).mean()


# ---------------------------------------------------------------- MP3


@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (44100, 2), (48000, 1), (22050, 1), (16000, 2), (8000, 1)])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_without_its_tag_is_read_whole(tmp_path, rate, channels, mode):
    noise = sound(5 * rate, channels)
    quiet = np.full((3 * rate, *noise.shape[1:]), 0.001, np.float32)
    path = encoded(tmp_path / "a.mp3", np.concatenate([noise, quiet]), rate, bitrate_mode=mode)
    expected = samples_of(path, rate)
    assert len(expected) == 8 * rate
    waveform = samples_of(without_tag(path), rate)
    assert len(expected) < len(waveform) < len(expected) + 4 * 1152
    # The encoder's delay, which the tag told, is there now; of it the decoder may know its own part.
    assert min(share_of_difference(waveform[delay:], expected) for delay in (576, 1105)) < 0.02


def test_mp3s_put_one_after_the_other_are_read_whole(tmp_path):
    one = encoded(tmp_path / "1.mp3", sound(44100, seed=1), 44100, bitrate_mode="VARIABLE")
    two = encoded(tmp_path / "2.mp3", sound(66150, seed=2), 44100)
    expected = np.concatenate([samples_of(one, 44100), samples_of(two, 44100)])
    assert (samples_of(join(tmp_path / "a.mp3", one, two), 44100) == expected).all()
    tagless = join(tmp_path / "b.mp3", without_tag(one), without_tag(two))
    assert len(expected) < len(samples_of(tagless, 44100)) < len(expected) + 4 * 1152


def test_the_shortest_mp3_behind_another_is_not_lost(tmp_path):
    one, two = write(tmp_path / "1.mp3", 44100, 44100), write(tmp_path / "2.mp3", 2205, 22050)
    assert len(samples_of(join(tmp_path / "a.mp3", one, two), 22050)) == 22050 + 2205


@pytest.mark.parametrize("junk", [bytes(5000), b"RIFX" + b"\xff\xfb\x90" * 100, b"\0" + b"ID3" * 50])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_is_found_behind_other_bytes(tmp_path, junk, mode):
    path = encoded(tmp_path / "a.mp3", sound(44100), 44100, bitrate_mode=mode)
    expected = samples_of(path, 44100)
    path.write_bytes(junk + path.read_bytes())
    assert (samples_of(path, 44100) == expected).all()
    tagless = without_tag(encoded(tmp_path / "b.mp3", sound(44100), 44100, bitrate_mode=mode))
    tagless.write_bytes(junk + tagless.read_bytes())
    assert 44100 < len(samples_of(tagless, 44100)) < 44100 + 4 * 1152


def test_mp3s_of_other_rates_and_channels_one_after_the_other(tmp_path):
    one = write(tmp_path / "1.mp3", 44100, 44100, 2)
    two = write(tmp_path / "2.mp3", 33075, 22050, 1)
    joined = samples_of(join(tmp_path / "a.mp3", one, two), 16000)
    assert len(joined) == 16000 + 24000
    assert share_of_difference(joined, np.concatenate([load_audio(one, 16000), load_audio(two, 16000)])) == 0


def test_an_mp3_keeps_its_length_among_tags_and_junk(tmp_path):
    path = encoded(tmp_path / "a.mp3", sound(44100), 44100, bitrate_mode="VARIABLE")
    expected = samples_of(path, 44100)
    frames, picture = path.read_bytes(), b"ID3\x04\x00\x00\x00\x00\x10\x00" + b"\xff\xfb\x90\x00" * 512
    for number, content in enumerate([picture + frames, frames + b"TAG" + b"x" * 125, picture + frames + b"TAG" + b"x" * 125]):
        other = tmp_path / f"{number}.mp3"
        other.write_bytes(content)
        assert (samples_of(other, 44100) == expected).all()
    middle = tmp_path / "middle.mp3"
    middle.write_bytes(frames + b"TAG" + b"x" * 125 + picture + frames)
    assert (samples_of(middle, 44100) == np.concatenate([expected, expected])).all()


def test_a_cut_mp3_is_read_as_far_as_it_goes_with_a_warning(tmp_path):
    path = write(tmp_path / "a.mp3", 441000, 44100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_audio(path, 44100) as stream:
        assert 0.45 < sum(map(len, stream)) / 441000 < 0.5
    assert len(stream.warnings) == 1 and "a.mp3 is cut short" in stream.warnings[0] and "frames" in stream.warnings[0]


# ---------------------------------------------------------------- Ogg


@pytest.mark.parametrize("codec", ["vorbis", "opus"])
def test_chained_ogg_is_read_whole(tmp_path, codec):
    one = write(tmp_path / "1.ogg", 30000, 48000, 2, seed=1, **OGG[codec])
    two = write(tmp_path / "2.ogg", 50000, 48000, 2, seed=2, **OGG[codec])
    expected = [samples_of(path, 48000) for path in (one, two, one)]
    assert (samples_of(join(tmp_path / "a.ogg", one, two, one), 48000) == np.concatenate(expected)).all()


def test_a_chain_of_other_rates_channels_and_codecs_is_read_whole(tmp_path):
    parts = [
        write(tmp_path / "1.ogg", 44100, 44100, 2, **OGG["vorbis"]),
        write(tmp_path / "2.ogg", 48000, 48000, 1, **OGG["opus"]),
        write(tmp_path / "3.ogg", 16000, 16000, 1, **OGG["vorbis"]),
    ]
    joined = samples_of(join(tmp_path / "a.ogg", *parts), 16000)
    assert (joined == np.concatenate([load_audio(part, 16000) for part in parts])).all()


def test_bytes_between_the_streams_of_a_chain_do_no_harm(tmp_path):
    one = write(tmp_path / "1.ogg", 30000, 48000, **OGG["vorbis"])
    (tmp_path / "a.ogg").write_bytes(one.read_bytes() + b"Og" * 40000 + one.read_bytes() + b"OggS")
    assert (samples_of(tmp_path / "a.ogg", 48000) == np.tile(load_audio(one, 48000), 2)).all()


# ---------------------------------------------------------------- FLAC


def flac_of_unknown_length(path):
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's number of samples: 36 bits, as an encoder that writes to a pipe leaves them
    content[22:26] = bytes(4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("samples", [100, 4096, 200_000])
def test_flac_of_unknown_length_is_read_whole(tmp_path, samples):
    path = write(tmp_path / "a.flac", samples, 44100, 2)
    expected = samples_of(path, 16000)
    assert (samples_of(flac_of_unknown_length(path), 16000) == expected).all()


@pytest.mark.parametrize("unknown", [False, True])
def test_flacs_put_one_after_the_other_are_read_whole(tmp_path, unknown):
    one, two = write(tmp_path / "1.flac", 30000, 44100, 2), write(tmp_path / "2.flac", 700_000, 16000, 1)
    expected = np.concatenate([load_audio(path, 16000) for path in (one, two, one)])
    if unknown:
        flac_of_unknown_length(one)
    assert (samples_of(join(tmp_path / "a.flac", one, two, one), 16000) == expected).all()


@pytest.mark.parametrize("place", [8, 9, 10, 11, 1 << 18, (1 << 18) - 3, (1 << 18) - 7, (1 << 18) + 1, 2 << 18])
def test_a_flac_is_found_wherever_it_begins(place):
    begin = b"fLaC\x80\x00\x00\x22"
    content = begin.ljust(place, b"\0") + begin + bytes(20)
    layout = read_layout(io.BytesIO(content), len(content))
    assert [part.pieces for part in layout.parts] == [(range(place),), (range(place, len(content)),)]


# ---------------------------------------------------------------- WAV


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)


def wav(*chunks: bytes) -> bytes:
    form = chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16))
    content = b"WAVE" + form + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


SAMPLES = (np.arange(1, 1601, dtype="<i2") * 7).tobytes()
MORE = (np.arange(1, 801, dtype="<i2") * -11).tobytes()


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([chunk(b"data", SAMPLES)], SAMPLES),
        ([chunk(b"LIST", b"odd"), chunk(b"data", SAMPLES), chunk(b"id3 ", b"title")], SAMPLES),
        ([chunk(b"data", SAMPLES, 0)], SAMPLES),  # the recorder was killed before it could complete the header
        ([chunk(b"data", SAMPLES, 0xFFFFFFFF)], SAMPLES),  # written to a pipe
        ([chunk(b"data", SAMPLES), chunk(b"data", MORE)], SAMPLES + MORE),
        ([chunk(b"data", SAMPLES), chunk(b"LIST", b"note"), chunk(b"data", MORE)], SAMPLES + MORE),
        ([chunk(b"data", SAMPLES), chunk(b"data", MORE, 0)], SAMPLES + MORE),
    ],
)
def test_wavs_are_read_whole(tmp_path, chunks, expected):
    (tmp_path / "a.wav").write_bytes(wav(*chunks))
    waveform = samples_of(tmp_path / "a.wav", 16000)
    assert (waveform == np.frombuffer(expected, "<i2") / np.float32(32768)).all()


def test_samples_behind_a_wavs_size_are_named_and_counted(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav(chunk(b"data", SAMPLES * 20, 3200)))
    with open_audio(tmp_path / "a.wav", 16000) as stream:
        assert sum(map(len, stream)) == 1600
    assert stream.warnings == [f"{tmp_path}/a.wav has 1.9 s more than its header says: they are left out"]
    assert stream.seconds_left_out == pytest.approx(1.9)


def test_samples_of_a_stream_that_a_decoder_does_not_give_are_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp3", 44100, 44100)
    join(path, path, path)
    with open_audio(path, 44100) as stream:
        monkeypatch.setattr(stream, "_parts", [decode.Part(part.pieces, part.frames + 44100) for part in stream._parts])
        assert sum(map(len, stream)) == 88200
    assert stream.seconds_left_out == pytest.approx(2, abs=0.2)
    assert all("s of it are left out" in warning for warning in stream.warnings) and len(stream.warnings) == 2


# ---------------------------------------------------------------- views, and damage of every kind


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_view_reads_as_its_bytes_one_after_the_other(data):
    content = bytes(range(256))
    bound = st.integers(0, 256)
    ranges = st.builds(lambda a, b: range(min(a, b), max(a, b)), bound, bound)
    pieces = data.draw(st.lists(st.one_of(st.binary(max_size=20), ranges), max_size=6))
    whole = b"".join(content[piece.start : piece.stop] if isinstance(piece, range) else piece for piece in pieces)
    view, plain = FileView(io.BytesIO(content), pieces), io.BytesIO(whole)
    for _ in range(5):
        place, length = data.draw(st.integers(0, 300)), data.draw(st.integers(0, 300))
        assert view.seek(place) == plain.seek(place)
        assert view.read(length) == plain.read(length)
    assert view.seek(0, io.SEEK_END) == len(whole)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_damaged_files_are_read_or_refused_by_name_and_nothing_else(tmp_path, suffix):
    whole = write(tmp_path / f"a.{suffix}", 8000, 16000).read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        content = bytearray(whole[: random.choice([random.integers(1, len(whole)), len(whole)])])
        for place in random.integers(0, min(len(content), random.choice([64, len(whole)])), random.integers(4)):
            content[place] = random.integers(256)
        path = tmp_path / f"b.{suffix}"
        path.write_bytes(content)
        try:
            load_audio(path, 16000)
            outcomes.add("read")
        except ValueError as error:
            assert str(error).startswith(str(path))
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_an_error_of_the_disk_in_the_middle_is_not_taken_for_the_end(tmp_path, monkeypatch):
    path = write(tmp_path / "a.flac", 30000, 44100)
    join(path, path, path)
    with open_audio(path, 44100) as stream:

        def broken(_):
            stream._source.error = OSError(5, "Input/output error")
            return b""

        monkeypatch.setattr(stream._source, "_read", broken)
        with pytest.raises((OSError, ValueError), match=r"a\.flac cannot be read"):
            list(stream)
