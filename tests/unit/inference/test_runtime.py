"""RuntimeM2D: any length, in pieces; its log-mels, heads, masks and errors."""

import copy
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
import torch.nn.functional as F
from checkpoint_files import published_name, write_checkpoint, write_fine_tuned
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.checkpoint.weights import CheckpointError, save_atomically
from m2d.inference import runtime as runtime_audio
from m2d.inference import waveforms
from m2d.inference.runtime import Config, RuntimeM2D, get_to_melspec
from m2d.inference.waveforms import resample
from m2d.models.pos_embed import resize_positions

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by what they are, each written once."""
    root, made = tmp_path_factory.mktemp("weights"), {}

    def get(kind="plain", **sizes):
        key = (kind, *sorted(sizes.items()))
        if key not in made:
            torch.manual_seed(1)
            folder = root / str(len(made))
            if kind == "plain":
                made[key] = write_checkpoint(folder, **sizes)
            else:
                made[key] = write_fine_tuned(folder, **sizes)
        return made[key]

    return get


@pytest.fixture(scope="module")
def runtime(files):
    return RuntimeM2D(weight_file=files())


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


# ---------------------------------------------------------------- settings


def test_each_runtime_has_its_own_settings(files):
    first = RuntimeM2D(weight_file=files(), dur_frames=112, training_mask=0.5)
    second = RuntimeM2D(weight_file=files())
    assert first.cfg is not second.cfg and first.cfg.input_size == [80, 112] and second.cfg.input_size == [80, 208]
    assert second.cfg.dur_frames is None and second.cfg.training_mask == 0.0 and not second.cfg.flat_features
    assert Config().input_size is None and Config.dur_frames is None


def test_settings_from_keywords_attributes_and_subclasses():
    class Mine(Config):
        dur_frames = 801

    assert Config(dur_frames=801).dur_frames == Mine().dur_frames == 801
    assert repr(Config(sr="32k")) == "Config(sr='32k')"
    with pytest.raises(TypeError, match="unknown settings dur_frame"):
        Config(dur_frame=801)


def test_arguments_win_over_the_settings(files):
    cfg = Config(weight_file="elsewhere", dur_frames="304", flat_features=True, freeze_embed="True")
    runtime = RuntimeM2D(cfg=cfg, weight_file=files(), dur_frames=112)
    assert cfg.dur_frames == 112 and cfg.weight_file == str(files()) and cfg.flat_features is True
    assert not runtime.backbone.patch_embed.proj.weight.requires_grad
    assert RuntimeM2D(cfg=cfg, freeze_embed=False).backbone.patch_embed.proj.weight.requires_grad


def test_what_is_found_stands_in_the_settings(files):
    cfg = Config()
    RuntimeM2D(cfg, files())
    found = dict(model="m2d_vit_tiny", patch_size=[16, 16], sr="16k", decoder_depth=2, feature_d=960, mean=-6.5, std=3.5)
    assert {name: getattr(cfg, name) for name in found} == found


def test_a_checkpoint_without_statistics_takes_those_of_2022(files, tmp_path):
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    torch.save({k: v for k, v in torch.load(files(), weights_only=False)["model"].items() if k != "norm_stats"}, path)
    cfg = RuntimeM2D(weight_file=path).cfg
    assert (cfg.mean, cfg.std) == pytest.approx((-7.1, 4.2))


# ---------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("random", ["{}-random", "{}/random"])
def test_random_weights_of_the_sizes_in_a_path(tmp_path, random):
    name = "m2d_s_vit_tiny-80x100p80x4"
    first, second = (RuntimeM2D(weight_file=str(tmp_path / random.format(name)), num_classes=3) for _ in range(2))
    assert first.cfg.feature_d == 192 and first(torch.zeros(1, 16000)).shape == (1, 3)
    assert not torch.equal(first.backbone.blocks[0].attn.qkv.weight, second.backbone.blocks[0].attn.qkv.weight)


def test_sizes_from_inside_where_the_name_does_not_tell(files, tmp_path):
    saved = torch.load(files(), weights_only=False)
    saved["args"] = dict(model="m2d_vit_tiny", input_size="80x208", patch_size=[16, 16], sr="16k")
    save_atomically(saved, tmp_path / "checkpoint-1.pth")
    assert RuntimeM2D(weight_file=tmp_path).cfg.input_size == [80, 208]
    save_atomically({**saved, "args": {}}, tmp_path / "checkpoint-1.pth")
    with pytest.raises(CheckpointError, match=r"neither the folder's name.*m2d_vit_base-80x608p16x16"):
        RuntimeM2D(weight_file=tmp_path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m2d_vit_tiny-80x304p16x16", r"pos_embed of the checkpoint has 66 positions.*needs 96.*does not fit"),
        ("m2d_vit_tiny-80x104p16x8", r"\[192, 1, 16, 16\] in the checkpoint and \[192, 1, 16, 8\] in the model"),
        ("m2d_vit_small-80x208p16x16", r"\[1, 1, 192\] in the checkpoint and \[1, 1, 384\] in the model"),
        ("m2d_vit_tyni-80x208p16x16", "unknown model 'm2d_vit_tyni_encoder_only': did you mean"),
        ("m2d_vit_tiny-80x208p16x16p8k", "a sample rate of 8k is not known: choose from 16k, 32k"),
    ],
)
def test_a_name_that_does_not_fit_what_is_inside(files, tmp_path, name, words):
    (tmp_path / name).mkdir()
    (tmp_path / name / "w.pth").symlink_to(files())
    with pytest.raises(ValueError, match=words):
        RuntimeM2D(weight_file=tmp_path / name / "w.pth")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (published_name(rate="p32k"), {}, "name says sr 32k, the settings in the file 16k"),
        (published_name(), {"patch_size": "16x8"}, "name says patch_size 16x16, the settings in the file 16x8"),
        (published_name(), {"input_size": "64x208"}, "name says input_size 80x208, the settings in the file 64x208"),
    ],
)
def test_a_name_that_contradicts_the_settings_in_the_file(files, tmp_path, name, settings, words):
    saved = torch.load(files(), weights_only=False)
    saved["args"] = dict(model="m2d_vit_tiny", input_size="80x208", patch_size="16x16", sr="16k") | settings
    path = tmp_path / name / "w.pth"
    path.parent.mkdir()
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=words):
        RuntimeM2D(weight_file=path)


def test_an_encoder_that_is_not_whole_is_refused(files, tmp_path):
    path = tmp_path / published_name() / "w.pth"
    path.parent.mkdir()
    saved = torch.load(files(), weights_only=False)["model"]
    torch.save({name: value for name, value in saved.items() if not name.startswith("blocks.11.")}, path)
    with pytest.raises(CheckpointError, match="does not fit m2d_vit_tiny: .* not in the checkpoint: blocks.11.norm1.weight"):
        RuntimeM2D(weight_file=path)
    extra = {name.replace("blocks.11.", "blocks.12."): value for name, value in saved.items() if name.startswith("blocks.11.")}
    torch.save(saved | extra, path)
    with pytest.raises(CheckpointError, match="m2d_vit_tiny: the checkpoint has 13 encoder blocks, the model has 12"):
        RuntimeM2D(weight_file=path)


def test_no_weight_file():
    for cfg in (None, Config(weight_file="None")):
        with pytest.raises(ValueError, match="no weight_file"):
            RuntimeM2D(cfg)


@pytest.mark.parametrize("family", ["m2d_x", "m2d_as", "m2d_s", "m2d_d2v", "msm_mae"])
@pytest.mark.parametrize("encoder_only", [True, False])
@torch.no_grad()
def test_every_family_with_and_without_its_decoder(files, family, encoder_only):
    path = files(model=f"{family}_vit_tiny", size=(80, 64))
    runtime = RuntimeM2D(weight_file=path, encoder_only=encoder_only)
    assert hasattr(runtime.backbone, "decoder_blocks") is not encoder_only
    saved = torch.load(path, weights_only=False)["model"]
    state = runtime.backbone.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in state.items())
    assert encoder_only or set(state) == set(saved)
    assert runtime(torch.zeros(1, 8000)).shape == (1, 4, 960)


def test_a_decoder_that_is_not_there_starts_at_random(files, tmp_path, caplog):
    path = tmp_path / published_name("m2d_x_vit_tiny") / "w.pth"
    path.parent.mkdir()
    encoder = RuntimeM2D(weight_file=files()).backbone.state_dict()
    torch.save(encoder, path)
    runtime = RuntimeM2D(weight_file=path, encoder_only=False)
    assert "has no decoder_blocks" in caplog.text
    assert runtime.backbone.decoder_blocks[0].mlp.fc1.weight.std() > 0.01
    assert torch.equal(runtime.backbone.target_norm.weight, encoder["norm.weight"])


# ---------------------------------------------------------------- heads


@torch.no_grad()
def test_a_fine_tuned_head_gives_logits(files):
    path = files("fine-tuned", classes=5, width=960)
    runtime = RuntimeM2D(weight_file=path, num_classes=5)
    saved = torch.load(path)
    audio = torch.randn(3, 50_000) * 0.1
    mean, variance = saved["module.head.norm.running_mean"], saved["module.head.norm.running_var"]

    def logits(features):
        scaled = (features - mean) / (variance + 1e-5).sqrt()
        return scaled @ saved["module.head.mlp.mlp.0.weight"].T + saved["module.head.mlp.mlp.0.bias"]

    embeddings = runtime.encode(audio)
    torch.testing.assert_close(runtime(audio), logits(embeddings.mean(dim=1)), rtol=1e-4, atol=1e-4)
    frames, ms = runtime.forward_frames(audio)
    assert frames.shape == (3, 20, 5) and ms.shape == (3, 20)
    torch.testing.assert_close(frames, logits(embeddings), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_head_as_wide_as_the_encoder_switches_flat_features_on(files):
    runtime = RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=192), num_classes=5, flat_features=False)
    assert runtime.cfg.flat_features and runtime.cfg.feature_d == 192
    assert runtime(torch.zeros(1, 16000)).shape == (1, 5)
    assert runtime.forward_frames(torch.zeros(1, 16000))[0].shape == (1, 7, 5)
    assert RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=192)).cfg.feature_d == 960


def test_a_head_of_another_size(files, caplog):
    assert RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=960), num_classes=7).head.weight.shape == (7, 960)
    assert "has 5 classes: one of 7 starts at random" in caplog.text
    with pytest.raises(ValueError, match="takes 960 features; there are 192 .flat"):
        RuntimeM2D(weight_file=files("fine-tuned", classes=5, width=960), num_classes=5, flat_features=True)


def test_a_new_head_is_said_and_no_head_gives_no_logits(files, runtime, caplog):
    assert RuntimeM2D(weight_file=files(), num_classes=3)(torch.zeros(2, 16000)).shape == (2, 3)
    assert "has no classifier" in caplog.text
    with pytest.raises(ValueError, match="give num_classes"):
        runtime.forward_frames(torch.zeros(1, 16000))


# ---------------------------------------------------------------- training


def test_masking_hides_patches_in_training_alone(files):
    runtime = RuntimeM2D(weight_file=files(), training_mask=0.5, num_classes=4)
    assert runtime.cfg.flat_features and runtime.cfg.feature_d == 192 and runtime.cfg.training_mask == 0.5
    lms = torch.randn(2, 1, 80, 208)
    assert runtime.encode_lms(lms).shape == (2, 65, 192)
    runtime.train()
    hidden = runtime.encode_lms(lms)
    assert hidden.shape[1] < 65
    long = runtime.encode_lms(torch.randn(2, 1, 80, 500))
    assert long.shape[0] == 2 and long.shape[1] < 160 and long.shape[2] == 192
    with pytest.raises(ValueError, match="need all patches"):
        runtime.encode_lms(lms, average_per_time_frame=True)
    runtime(torch.randn(2, 16000)).sum().backward()
    assert runtime.backbone.patch_embed.proj.weight.grad is not None


@pytest.mark.parametrize("freeze", [False, True])
def test_what_is_frozen(files, freeze):
    runtime = RuntimeM2D(weight_file=files(), freeze_embed=freeze, num_classes=2)
    frozen = {name for name, parameter in runtime.named_parameters() if not parameter.requires_grad}
    embed = {"backbone.patch_embed.proj.weight", "backbone.patch_embed.proj.bias"} if freeze else set()
    assert frozen == {"backbone.pos_embed", "backbone.norm_stats"} | embed


def test_gradients_flow_through_pieces(files, monkeypatch):
    monkeypatch.setattr(runtime_audio, "_TOKENS_PER_BLOCK", 1)
    runtime = RuntimeM2D(weight_file=files())
    lms = torch.randn(1, 1, 80, 500, requires_grad=True)
    runtime.encode_lms(lms).square().sum().backward()
    assert (lms.grad[..., :500].abs().amax(dim=2) > 0).all()


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (torch.zeros(16000), r"\[batch, samples\].*float32 tensor \[16000\]"),
        (torch.zeros(1, 1, 16000), r"\[1, 1, 16000\]"),
        (torch.zeros(1, 16000, dtype=torch.int16), "int16"),
        (np.zeros((1, 16000), np.float32), "a ndarray"),
        (torch.zeros(1, 0), "empty"),
        (torch.zeros(0, 100), "empty"),
        (torch.tensor([[0.0] * 400, [float("nan")] * 400, [float("inf")] * 400]), "NaN or infinity in clip 1, 2 of the batch"),
    ],
)
def test_wrong_audio(runtime, audio, words):
    for call in (runtime, runtime.to_feature, runtime.get_scene_embeddings):
        with pytest.raises(ValueError, match=words):
            call(audio)


@pytest.mark.parametrize("shape", [(80, 208), (1, 80, 208), (1, 1, 64, 208), (1, 3, 80, 208), (1, 1, 80, 0)])
def test_wrong_spectrograms(runtime, shape):
    with pytest.raises(ValueError, match=r"\[batch, 1, 80, frames\]"):
        runtime.encode_lms(torch.zeros(shape))


# ---------------------------------------------------------------- ways of running


@torch.no_grad()
def test_autocast_leaves_the_log_mel_alone(runtime):
    audio = torch.randn(2, 30_000) * 0.01
    log_mel, expected = runtime.to_feature(audio), runtime(audio)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(runtime.to_feature(audio), log_mel)
        half = runtime(audio)
    assert F.cosine_similarity(half.float().flatten(), expected.flatten(), dim=0) > 0.999


@torch.no_grad()
def test_deep_copies_and_replicas_are_independent(runtime):
    audio = torch.randn(2, 20_000) * 0.1
    expected = runtime(audio)
    twin = copy.deepcopy(runtime)
    twin.cfg.mean = 0.0
    twin.backbone.norm.weight.zero_()
    torch.testing.assert_close(runtime(audio), expected)
    assert torch.nn.DataParallel(runtime)(audio).shape == expected.shape
    torch.testing.assert_close(replica(runtime)(audio), expected)


def replica(module):
    """What DataParallel makes of a module: no parameters, plain tensors as attributes."""
    copied = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        copied._modules[name] = replica(child) if child is not None else None
    for kind in (module._parameters, module._buffers):
        for name, value in kind.items():
            setattr(copied, name, None if value is None else value.detach())
    assert not list(copied.parameters())
    return copied


@torch.no_grad()
def test_a_compiled_runtime_gives_the_same(files):
    runtime = RuntimeM2D(weight_file=files(size=(80, 64)))
    audio = torch.randn(2, 20_000) * 0.1
    expected = runtime(audio)
    compiled = torch.compile(runtime, backend="aot_eager")
    torch.testing.assert_close(compiled(audio), expected, rtol=1e-4, atol=1e-4)


def test_half_a_model_says_what_to_do(files):
    with pytest.raises(ValueError, match="torch.autocast"):
        RuntimeM2D(weight_file=files()).half()(torch.zeros(1, 16000))


# ---------------------------------------------------------------- reconstruction


@pytest.fixture(scope="module")
def mae(files):
    return RuntimeM2D(weight_file=files(model="msm_mae_vit_tiny"), encoder_only=False)


def test_reconstruction_fills_in_what_is_hidden(mae):
    lms = torch.randn(2, 1, 80, 300)
    loss, used, recons, errormap, mask = mae.reconstruct(lms, 0.75, start_frame=50)
    assert torch.equal(used, lms[..., 50:258]) and mask.shape == (2, 5, 13) and loss.ndim == 0
    hidden = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None].bool()
    assert torch.equal(recons[~hidden], used[~hidden]) and (recons[hidden] != used[hidden]).all()
    torch.testing.assert_close(errormap, (recons - used).abs())
    with pytest.raises(ValueError, match="needs 208 frames from start_frame=100 on; there are 200"):
        mae.reconstruct(lms, 0.75, start_frame=100)


def test_tokens_are_decoded_to_a_spectrogram(mae):
    lms = torch.randn(2, 1, 80, 208)
    tokens, *_ = mae.backbone.forward_encoder(lms, 0.0)
    decoded = mae.decode_to_lms(tokens)
    assert decoded.shape == lms.shape
    pred = mae.backbone.forward_decoder(tokens, torch.arange(65).expand(2, -1))
    torch.testing.assert_close(decoded, mae.backbone.unpatchify(pred))


def test_reconstruction_needs_a_decoder(runtime):
    with pytest.raises(ValueError, match="needs an MAE checkpoint"):
        runtime.reconstruct(torch.zeros(1, 1, 80, 208), 0.5)


def test_a_spectrogram_becomes_a_sound_of_the_same_pitch(mae):
    pytest.importorskip("librosa")
    audio = torch.sin(2 * torch.pi * 700 * torch.arange(16000) / 16000)[None] * 0.3
    wav = mae.lms_to_wav(mae.to_normalized_spec(audio)[0], mae.backbone.norm_stats.tolist())
    spectrum = np.abs(np.fft.rfft(wav))
    assert abs(np.argmax(spectrum) * 16000 / len(wav) - 700) < 40
    assert 0.5 < np.sqrt((wav**2).mean()) / audio.square().mean().sqrt().item() < 1.5


# ---------------------------------------------------------------- speed of loading


def test_weights_to_be_overwritten_are_not_drawn_at_random(files):
    path = files()
    state = torch.get_rng_state()
    RuntimeM2D(weight_file=path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_loaded_runtime_does_not_hold_on_to_the_file(files):
    path = files("fine-tuned", classes=5, width=960)
    runtime = RuntimeM2D(weight_file=path, num_classes=5)
    assert runtime.num_classes == 5 and str(path) not in Path("/proc/self/maps").read_text()
