"""RuntimeM2D: any length, in pieces; forms of features, sampling rates, padded batches, other input lengths."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
import torch.nn.functional as F
from checkpoint_files import published_name
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.inference import runtime as runtime_audio
from m2d.inference import waveforms
from m2d.inference.runtime import RuntimeM2D, get_to_melspec
from m2d.inference.waveforms import resample
from m2d.models.pos_embed import resize_positions

ROOT = Path(__file__).resolve().parents[3]


def piecewise(runtime, lms):
    """The rule of pieces, in its plainest form: one at a time, the end padded to a whole patch."""
    unit, patch = runtime.backbone.patch_embed.img_size[1], runtime.backbone.patch_size()[1]
    lms = F.pad(lms, (0, (patch - lms.shape[-1] % unit % patch) % patch))
    outputs = []
    for piece in lms.split(unit, dim=-1):
        if piece.shape[-1] >= patch:
            tokens = runtime.backbone.forward_encoder(piece, 0.0, adjust_short=True)[0][:, 1:]
            steps = tokens.unflatten(1, (runtime.backbone.grid_size()[0], -1)).transpose(1, 2)
            outputs.append(steps.flatten(2))
    return torch.cat(outputs, dim=1)


# ---------------------------------------------------------------- lengths


@pytest.mark.parametrize(("size", "patch"), [((80, 208), (16, 16)), ((80, 100), (16, 16)), ((80, 50), (80, 4))])
@torch.no_grad()
def test_any_number_of_frames_is_encoded_in_pieces(files, size, patch, monkeypatch):
    runtime = RuntimeM2D(weight_file=files(size=size, patch=patch))
    unit, width = size[1], patch[1]
    lengths = [1, width - 1, width, width + 1, unit - 1, unit, unit + 1, unit + width, 3 * unit - 1, 3 * unit, 3 * unit + 5]
    for budget in (1 << 13, 1):
        monkeypatch.setattr(runtime_audio, "_TOKENS_PER_BLOCK", budget)
        for frames in lengths:
            lms = torch.randn(2, 1, 80, frames)
            torch.testing.assert_close(runtime.encode_lms(lms), piecewise(runtime, lms), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "steps"),
    [(1001, 62), (1002, 63), (1009, 63), (1017, 63), (1018, 64), (2001, 124), (995, 62), (992, 62), (976, 61)],
)
@torch.no_grad()
def test_time_steps_of_an_input_that_is_no_multiple_of_the_patch(files, frames, steps):
    """80x1001 holds 62 whole patches of 16 frames; from 10.01 s on a further piece is begun."""
    runtime = RuntimeM2D(weight_file=files(size=(80, 1001)))
    assert runtime.encode_lms(torch.zeros(1, 1, 80, frames)).shape == (1, steps, 960)


@settings(max_examples=15)
@given(samples=st.integers(1, 60_000))
@torch.no_grad()
def test_a_waveform_of_any_length_is_encoded_as_its_spectrogram_is(runtime, samples):
    audio = torch.sin(torch.arange(samples) ** 1.5 / 300)[None] * 0.3
    torch.testing.assert_close(runtime(audio), runtime.encode_lms(runtime.to_normalized_spec(audio)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_long_waveforms_pass_through_in_bounded_stretches(runtime, monkeypatch):
    monkeypatch.setattr(runtime_audio, "_TOKENS_PER_BLOCK", 300)
    audio = torch.randn(1, 40 * 16000) * 0.1
    expected = runtime.encode_lms(runtime.to_normalized_spec(audio))
    largest = {"spectrogram": 0, "encoder": 0}
    to_frames, encoder = waveforms.to_frames, runtime.backbone.forward_encoder

    def spy_frames(x, front_end):
        largest["spectrogram"] = max(largest["spectrogram"], x.shape[-1])
        return to_frames(x, front_end)

    def spy_encoder(x, *args, **kwargs):
        largest["encoder"] = max(largest["encoder"], x.shape[0])
        return encoder(x, *args, **kwargs)

    monkeypatch.setattr(waveforms, "to_frames", spy_frames)
    monkeypatch.setattr(runtime.backbone, "forward_encoder", spy_encoder)
    torch.testing.assert_close(runtime(audio), expected, rtol=1e-4, atol=1e-4)
    assert largest == {"spectrogram": 4 * 208 * 160 + 2 * 320, "encoder": 4}


def test_the_log_mel_has_no_seams(runtime, monkeypatch):
    """Made in stretches it equals the one made at once, at seams and ends too."""
    for samples in (201, 5000, 48_000, 48_161):
        audio = torch.randn(3, samples) * 0.1
        whole = runtime.to_feature(audio)
        reference = (get_to_melspec(runtime.cfg)(audio) + torch.finfo(torch.float32).eps).log()[:, None]
        torch.testing.assert_close(whole, reference, rtol=1e-5, atol=1e-4)
        for step in (1, 2, 7, 64):
            with monkeypatch.context() as patch:
                patch.setattr(runtime_audio, "_FRAMES_PER_BLOCK", step * 3)
                torch.testing.assert_close(runtime.to_feature(audio), whole, rtol=1e-5, atol=1e-4)


def test_a_waveform_shorter_than_the_window_is_padded_with_zeros(runtime):
    audio = torch.randn(1, 150) * 0.1
    torch.testing.assert_close(runtime.to_feature(audio), runtime.to_feature(F.pad(audio, (0, 51))))
    assert runtime(audio).shape == (1, 1, 960)


@pytest.mark.slow
def test_an_hour_needs_no_more_memory_than_ten_minutes_beyond_its_output(files):
    """Peak memory of one process per length, less the input and the output."""
    program = """
        import resource, sys, torch
        from m2d.inference.runtime import RuntimeM2D
        torch.set_num_threads(1)
        runtime, seconds = RuntimeM2D(weight_file=sys.argv[1]), int(sys.argv[2])
        runtime(torch.zeros(1, 16000))
        audio = torch.full((1, seconds * 16000), 0.01)
        with torch.no_grad():
            output = runtime(audio)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - audio.nbytes - output.nbytes)
    """
    peaks = []
    for seconds in (600, 3600):
        command = [sys.executable, "-c", textwrap.dedent(program), str(files()), str(seconds)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 40e6, peaks


# ---------------------------------------------------------------- forms of features


@torch.no_grad()
def test_layers_come_as_a_list_with_the_last_normalised(runtime):
    lms = torch.randn(2, 1, 80, 300)
    layers = runtime.encode_lms(lms, return_layers=True)
    assert isinstance(layers, list) and len(layers) == 12 and {layer.shape for layer in layers} == {(2, 19, 960)}
    torch.testing.assert_close(layers[-1], runtime.encode_lms(lms), rtol=1e-5, atol=1e-5)
    tokens = runtime.backbone.embed(lms[..., :208])
    first = runtime.backbone.blocks[0](runtime.backbone.with_cls_token(tokens))[:, 1:].unflatten(1, (5, 13))
    torch.testing.assert_close(layers[0][:, :13], first.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_flat_features_are_the_same_values_in_another_form(files, runtime):
    flat = RuntimeM2D(weight_file=files(), flat_features=True)
    assert flat.cfg.feature_d == 192 and runtime.cfg.feature_d == 960
    lms = torch.randn(2, 1, 80, 250)
    stacked = runtime.encode_lms(lms).unflatten(2, (5, 192))
    pieces = [stacked[:, :13], stacked[:, 13:]]
    expected = torch.cat([piece.transpose(1, 2).flatten(1, 2) for piece in pieces], dim=1)
    torch.testing.assert_close(flat.encode_lms(lms), expected, rtol=1e-5, atol=1e-5)
    per_frame = flat.encode_lms(lms, average_per_time_frame=True)
    torch.testing.assert_close(per_frame, stacked.mean(dim=2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(runtime.encode_lms(lms, average_per_time_frame=True), stacked.flatten(2))


@torch.no_grad()
def test_scene_and_timestamp_embeddings(runtime):
    audio = torch.randn(2, 20_000) * 0.1
    frames, ms = runtime.get_timestamp_embeddings(audio)
    assert frames.shape == (2, 8, 960) and ms.shape == (2, 8)
    torch.testing.assert_close(ms[1], torch.arange(8) * (1250 / 8))
    torch.testing.assert_close(runtime.get_scene_embeddings(audio), frames.mean(dim=1))


@pytest.mark.parametrize(
    ("dur_frames", "samples", "frames"),
    [
        (None, 16000, [0, 16, 32, 48, 64, 80, 96]),  # 101 frames, the end padded
        (None, 45000, [*range(0, 208, 16), 208, 224, 240, 256, 272]),  # 282 frames: a whole piece and a part of one
        (100, 16000, [0, 16, 32, 48, 64, 80, 100]),  # 101 frames, one more than the input: a second piece
        (100, 24000, [0, 16, 32, 48, 64, 80, 100, 116, 132, 148]),  # pieces start at multiples of 100 frames
    ],
)
@torch.no_grad()
def test_patch_times_tell_when_patches_begin(files, dur_frames, samples, frames):
    runtime = RuntimeM2D(weight_file=files(), dur_frames=dur_frames)
    times = runtime.patch_times(samples)
    assert times.tolist() == [10.0 * frame for frame in frames]
    features, published = runtime.get_timestamp_embeddings(torch.zeros(1, samples))
    assert features.shape[1] == len(times) and published[0, 1] == pytest.approx(samples / 16 / len(times))


@torch.no_grad()
def test_a_model_of_32_khz(files):
    runtime = RuntimeM2D(weight_file=files(model="m2d_as_vit_tiny", rate="p32k"))
    cfg = runtime.cfg
    assert (cfg.sr, runtime.sample_rate, cfg.n_fft, cfg.window_size, cfg.hop_size) == ("32k", 32000, 800, 800, 320)
    assert (cfg.n_mels, cfg.f_min, cfg.f_max) == (80, 50, 16000)
    assert runtime.to_feature(torch.zeros(1, 32000)).shape == (1, 1, 80, 101)


# ---------------------------------------------------------------- other sampling rates


def band_limited(rate, seconds, top, seed=0):
    """Noise below `top` Hz, float64 `[samples]`, about ±0.5."""
    spectrum = np.fft.rfft(np.random.RandomState(seed).standard_normal(int(rate * seconds)))
    spectrum[np.fft.rfftfreq(int(rate * seconds), 1 / rate) > top] = 0
    noise = np.fft.irfft(spectrum, int(rate * seconds))
    return 0.5 * noise / np.abs(noise).max()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 44100, 48000, 96000])
def test_resampling_agrees_with_soxr_above_60_db(rate):
    """In the pass band: below 0.9 of the lower Nyquist frequency."""
    audio = band_limited(rate, 1.0, 0.9 * min(rate, 16000) / 2)
    expected = soxr.resample(audio, rate, 16000, quality="VHQ")
    ours = resample(torch.from_numpy(audio).float()[None], rate, 16000)[0].double().numpy()
    assert len(ours) == -(-len(audio) * 16000 // rate)
    inner = slice(800, -800)  # filters see different things beyond the ends
    error = ours[: len(expected)][inner] - expected[inner]
    assert 10 * np.log10(np.square(expected[inner]).mean() / np.square(error).mean()) > 60


@pytest.mark.parametrize("rate", [32000, 44100])
def test_resampling_removes_what_the_model_cannot_hear(rate):
    tone = torch.sin(2 * torch.pi * 10_000 * torch.arange(rate, dtype=torch.float64) / rate)[None]
    assert resample(tone, rate, 16000)[..., 800:-800].abs().max() < 1e-4


@torch.no_grad()
def test_every_call_takes_another_rate(files):
    runtime = RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=960), num_classes=5)
    audio = torch.from_numpy(band_limited(44100, 2.5, 7000)).float().repeat(2, 1)
    there = resample(audio, 44100, 16000)
    assert there.shape == (2, 40000)
    assert_same = torch.testing.assert_close
    assert_same(runtime.encode(audio, sample_rate=44100), runtime.encode(there))
    assert_same(runtime(audio, sample_rate=44100), runtime(there))
    assert_same(runtime.get_scene_embeddings(audio, sample_rate=44100), runtime.get_scene_embeddings(there))
    for call in (runtime.get_timestamp_embeddings, runtime.forward_frames):
        for ours, expected in zip(call(audio, sample_rate=44100), call(there), strict=True):
            assert_same(ours, expected)
    assert_same(runtime(there, sample_rate=16000), runtime(there))
    for wrong in (0, -1, 44100.5):
        with pytest.raises(ValueError, match="whole number of Hz"):
            runtime(audio, sample_rate=wrong)


# ---------------------------------------------------------------- batches of padded clips


@pytest.mark.parametrize("options", [{}, {"dur_frames": 101}, {"flat_features": True}])
@torch.no_grad()
def test_clips_of_a_padded_batch_are_encoded_as_if_alone(files, options, monkeypatch):
    monkeypatch.setattr(runtime_audio, "_TOKENS_PER_BLOCK", 150)
    runtime = RuntimeM2D(weight_file=files(), **options)
    lengths = [50_000, 150, 16_000, 1, 33_333, 16_000]
    audio = torch.randn(6, 50_000) * 0.1
    together, scenes = runtime.encode(audio, lengths=lengths), runtime.get_scene_embeddings(audio, lengths=lengths)
    per_frame = runtime.encode(audio, average_per_time_frame=True, lengths=torch.tensor(lengths))
    for clip, length in enumerate(lengths):
        alone = audio[clip : clip + 1, :length]
        expected = runtime.encode(alone)[0]
        torch.testing.assert_close(together[clip, : len(expected)], expected, rtol=1e-5, atol=1e-5)
        assert (together[clip, len(expected) :] == 0).all()
        torch.testing.assert_close(scenes[clip], runtime.get_scene_embeddings(alone)[0], rtol=1e-5, atol=1e-5)
        frames = runtime.encode(alone, average_per_time_frame=True)[0]
        torch.testing.assert_close(per_frame[clip, : len(frames)], frames, rtol=1e-5, atol=1e-5)


def test_logits_and_rates_of_a_padded_batch(files):
    runtime = RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=960), num_classes=5)
    audio, lengths = torch.randn(2, 44_100) * 0.1, [44_100, 20_000]
    logits = runtime(audio, sample_rate=44100, lengths=lengths)
    for clip, length in enumerate(lengths):
        alone = runtime(audio[clip : clip + 1, :length], sample_rate=44100)
        torch.testing.assert_close(logits[clip : clip + 1], alone, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert runtime.backbone.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("lengths", [[100], [100, 0], [100, 401], [100, 100, 100]])
def test_lengths_that_do_not_fit(runtime, lengths):
    with pytest.raises(ValueError, match="2 numbers of samples from 1 to 400, one per clip"):
        runtime.encode(torch.zeros(2, 400), lengths=lengths)


# ---------------------------------------------------------------- another input length


@torch.no_grad()
def test_dur_frames_fits_the_stored_positions(files, runtime):
    stored = runtime.backbone.pos_embed
    for frames in (112, 208, 304, 310):
        longer = RuntimeM2D(weight_file=files(), dur_frames=frames)
        torch.testing.assert_close(longer.backbone.pos_embed, resize_positions(stored, (5, 13), frames // 16))
        assert longer.cfg.input_size == [80, frames] and longer.cfg.dur_frames == frames
        assert not longer.backbone.pos_embed.requires_grad
        lms = torch.randn(1, 1, 80, 2 * frames + 20)
        torch.testing.assert_close(longer.encode_lms(lms), piecewise(longer, lms), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shorter than a patch of 16 frames"):
        RuntimeM2D(weight_file=files(), dur_frames=15)


@pytest.mark.parametrize(("frames", "steps"), [(51, 3), (48, 3), (16, 1), (100, 6), (101, 6), (102, 7), (15, 1)])
@torch.no_grad()
def test_a_clip_shorter_than_dur_frames_is_encoded_in_one_piece_without_padding(files, frames, steps):
    """As published: frames behind the last whole patch are not seen. Only a clip shorter than one patch is padded to it."""
    runtime = RuntimeM2D(weight_file=files(), dur_frames=101)
    lms = torch.randn(2, 1, 80, frames)
    features = runtime.encode_lms(lms)
    assert features.shape == (2, steps, 960)
    if 16 <= frames <= 101:
        seen = lms[..., : frames // 16 * 16]
        tokens = runtime.backbone.forward_encoder(seen, 0.0, adjust_short=True)[0][:, 1:]
        expected = tokens.unflatten(1, (5, steps)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    joined = torch.cat([runtime.encode_lms(piece) for piece in runtime.split_lms(lms)], dim=1)
    torch.testing.assert_close(joined, features, rtol=1e-4, atol=1e-5)


def test_the_checkpoints_own_positions_are_used(files, tmp_path):
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    saved = torch.load(files(), weights_only=False)["model"]
    saved["pos_embed"] = torch.randn_like(saved["pos_embed"])
    torch.save(saved, path)
    assert torch.equal(RuntimeM2D(weight_file=path).backbone.pos_embed, saved["pos_embed"])
    del saved["pos_embed"]
    torch.save(saved, path)
    fixed = RuntimeM2D(weight_file=path).backbone.pos_embed
    torch.testing.assert_close(fixed, torch.load(files(), weights_only=False)["model"]["pos_embed"])
