"""RuntimeM2D in training, compiled, copied, with wrong inputs, and its reconstructions."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.inference import runtime as runtime_audio
from m2d.inference.runtime import RuntimeM2D

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


@pytest.mark.parametrize("sign", [1, -1])
def test_audio_in_16_bit_numbers_is_warned_of(runtime, sign, recwarn):
    audio = torch.zeros(2, 16_000)
    audio[1, 40] = 1.5 * sign  # a peak beyond full scale, as decoders give
    runtime(audio)
    assert not recwarn
    audio[1, 41] = 20_000 * sign
    with pytest.warns(UserWarning, match="far beyond full scale, which is ±1: divide 16-bit samples by 32768"):
        runtime(audio)


@pytest.mark.parametrize(("lengths", "words"), [([400, 400.5], "400.5"), ([400], r"\[400.0\]"), ([0, 400], "from 1 to 16000")])
def test_wrong_lengths(runtime, lengths, words):
    with pytest.raises(ValueError, match=words):
        runtime.encode(torch.zeros(2, 16_000), lengths=lengths)


@pytest.mark.parametrize("rate", ["44100", 0, 44_100.5])
def test_wrong_rates(runtime, rate):
    with pytest.raises(ValueError, match=f"sample_rate is a whole number of Hz; this is {rate!r}"):
        runtime(torch.zeros(1, 16_000), sample_rate=rate)


@pytest.mark.parametrize("rate", [44_101, 2**31])
def test_rates_that_would_take_gigabytes_of_filter(runtime, rate):
    with pytest.raises(ValueError, match=f"from {rate} to 16000 Hz .* resample before, with soxr or librosa"):
        runtime(torch.zeros(1, 16_000), sample_rate=rate)


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
@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 3), samples=st.integers(400, 60_000), tokens=st.sampled_from([1, 150, 1 << 13]), half=st.booleans())
def test_bfloat16_is_near_float32_whatever_is_encoded_at_once(runtime, batch, samples, tokens, half):
    """Cosine above 0.999 at each time step, in blocks of any size, with and without weights that are cast once."""
    audio = 0.3 * torch.sin(torch.arange(batch * samples).reshape(batch, -1) ** 1.5 / 300)
    expected = runtime.encode(audio)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(runtime_audio, "_TOKENS_PER_BLOCK", tokens)
        runtime.use_half_encoder(half)
        found = runtime.encode(audio)
        runtime.use_half_encoder(False)
    assert found.shape == expected.shape
    assert torch.cosine_similarity(found.float(), expected, dim=-1).min() > 0.999


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


@torch.no_grad()
def test_fast_code_gives_near_embeddings(files):
    runtime, audio = RuntimeM2D(weight_file=files()), torch.randn(2, 40_000) * 0.1
    expected = runtime.get_scene_embeddings(audio)
    runtime.use_fast_code()
    with torch.autocast("cpu", torch.bfloat16):
        found = runtime.get_scene_embeddings(audio)
    assert torch.cosine_similarity(found.float(), expected).min() > 0.999
