"""M2D-CLAP's loss and projectors, against the same written out in NumPy and with PyTorch's own layers."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from small_models import inputs, plan, small_model

from m2d.models.clap import clap_loss
from m2d.models.projectors import MLPProjector, SemanticProjector
from m2d.models.registry import build


def numpy(tensor):
    return tensor.detach().double().numpy()


def loss_by_hand(audio, text, scale):
    audio, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio, text))
    similarities = np.exp(scale) * audio @ text.T
    own = np.arange(len(audio))
    return -(log_softmax(similarities, axis=1)[own, own] + log_softmax(similarities, axis=0)[own, own]).mean() / 2


def semantic_by_hand(projector, tokens):
    """The projector with PyTorch's encoder layers, which hold the same tensors under other names."""
    width = tokens.shape[2]
    x = torch.cat([projector.sem_token.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in projector.sem_blocks:
        options = dict(activation="gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-5, dropout=0.0)
        layer = torch.nn.TransformerEncoderLayer(width, 1, block.mlp.fc1.out_features, **options)
        theirs = {"attn.qkv.weight": "self_attn.in_proj_weight", "attn.qkv.bias": "self_attn.in_proj_bias"}
        theirs |= {f"attn.proj.{k}": f"self_attn.out_proj.{k}" for k in ("weight", "bias")}
        theirs |= {f"mlp.fc{i}.{k}": f"linear{i}.{k}" for i in (1, 2) for k in ("weight", "bias")}
        layer.load_state_dict({theirs.get(name, name): value for name, value in block.state_dict().items()})
        x = layer(x)
    return torch.nn.functional.layer_norm(x[:, 0], (width,), projector.norm.weight, projector.norm.bias, eps=1e-5)


@pytest.mark.parametrize("batch, scale", [(1, 1.0), (2, 0.0), (7, 4.6052)])
def test_the_loss_is_the_mean_of_both_cross_entropies(batch, scale):
    audio, text = torch.randn(batch, 12), torch.randn(batch, 12)
    expected = loss_by_hand(numpy(audio), numpy(text), scale)
    assert clap_loss(audio, text, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert clap_loss(3 * audio, 0.1 * text, torch.tensor(scale)).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_caption_for_each_clip_is_expected():
    with pytest.raises(ValueError, match=r"audio embeddings are \[3, 12\], text embeddings \[2, 12\]"):
        clap_loss(torch.randn(3, 12), torch.randn(2, 12), torch.tensor(1.0))


@pytest.mark.parametrize("sem_mode", [0, 1])
@pytest.mark.parametrize("width", [20, 32])
def test_the_models_clap_loss_is_that_of_its_visible_patches(sem_mode, width):
    model = small_model("m2d_clap", off_emb_dim=width, sem_mode=sem_mode, loss_m2d=0.5, loss_off=0.3)
    fixed, target = plan(), torch.randn(2, width)
    x = inputs(model, "m2d_clap")[0]
    loss, _, (_, _, online, offline) = model(x, target, mask_ratio=fixed)
    visible = model.forward_encoder(x, fixed)[0][:, 1:]
    if sem_mode:
        audio = semantic_by_hand(model.audio_proj, visible)
    else:
        first, _, second = model.audio_proj
        audio = second(torch.relu(first(visible.mean(dim=1))))
    text = target if width == 32 else target @ model.text_proj.weight.T + model.text_proj.bias
    assert offline.item() == pytest.approx(loss_by_hand(numpy(audio), numpy(text), np.log(1 / 0.07)), rel=1e-4)
    assert loss.item() == pytest.approx(0.5 * online.item() + 0.3 * offline.item(), rel=1e-5)


def test_captions_stored_in_half_precision_are_taken():
    model = small_model("m2d_clap")
    x, target = inputs(model, "m2d_clap")
    assert model(x, target.half(), mask_ratio=plan())[0].isfinite()


@pytest.mark.parametrize("depth, ratio", [(1, 1), (2, 1), (3, 2), (4, 2)])
def test_the_semantic_projector_is_a_transformer_without_positions(depth, ratio):
    projector, tokens = SemanticProjector(16, depth), torch.randn(3, 9, 16)
    assert [block.mlp.fc1.out_features for block in projector.sem_blocks] == [16 * ratio] * depth
    out = projector(tokens)
    torch.testing.assert_close(out, semantic_by_hand(projector, tokens))
    torch.testing.assert_close(projector(tokens[:, torch.randperm(9)]), out)


def test_the_mlp_projector_takes_the_mean_first():
    projector, tokens = MLPProjector(16), torch.randn(3, 9, 16)
    torch.testing.assert_close(projector(tokens), projector(tokens.mean(dim=1, keepdim=True)))


def test_captions_as_wide_as_the_encoder_need_no_projector():
    for width in (None, 192):
        model = build("m2d_clap_vit_tiny", decoder_depth=1, off_emb_dim=width)
        assert not [name for name in model.state_dict() if name.startswith("text_proj")]
    assert build("m2d_clap_vit_tiny", decoder_depth=1, off_emb_dim=7).text_proj.weight.shape == (192, 7)


@pytest.mark.parametrize("value, kept", [(-0.1, 0.0), (2.0, 2.0), (4.7, 4.6052)])
def test_the_scale_is_kept_in_its_bounds(value, kept):
    model = small_model("m2d_clap")
    model.logit_scale.data.fill_(value)
    model.clip_logit_scale()
    assert model.logit_scale.item() == pytest.approx(kept)
    assert model.logit_scale.requires_grad
