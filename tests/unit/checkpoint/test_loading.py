"""Checkpoints are loaded into models: the same one, other variants, other grids, an encoder alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_files import FULL, SMALL, assert_same, training_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m2d.checkpoint.weights import (
    CheckpointError,
    load_into,
    read_weights,
    save_atomically,
)
from m2d.models.registry import M2D_AS_ViT, M2D_X_ViT, M2DEncoderViT, M2DViT

# ---------------------------------------------------------------- loading into a model


def test_the_same_model_takes_everything(model):
    other = M2DViT(**FULL)
    report = load_into(other, model.state_dict())
    assert_same(other.state_dict(), model.state_dict())
    assert set(report.loaded) == set(model.state_dict())
    assert not (report.new or report.unused or report.resized or report.copied or report.kept)
    assert str(report).startswith(f"loaded {len(model.state_dict())} tensors: cls_token")


def test_statistics_are_kept_on_request(model):
    other = M2DViT(**FULL, norm_stats=(-1.0, 2.0))
    report = load_into(other, model.state_dict(), take_norm_stats=False)
    assert other.norm_stats.tolist() == [-1.0, 2.0] and report.kept == ["norm_stats"]
    assert "kept from this run: norm_stats" in str(report)


def test_positions_of_another_grid_are_the_models_own(model):
    other = M2DViT(**dict(FULL, img_size=(80, 96)))
    own = {name: getattr(other, name).clone() for name in ("pos_embed", "decoder_pos_embed")}
    report = load_into(other, model.state_dict())
    assert sorted(report.resized) == ["decoder_pos_embed", "pos_embed"]
    assert all(torch.equal(getattr(other, name), value) for name, value in own.items())
    assert torch.equal(other.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)
    assert "positions regenerated for this input size: pos_embed, decoder_pos_embed" in str(report)


def test_another_variant_is_loaded_with_an_account(model):
    other = M2D_X_ViT(**FULL, off_emb_dim=5)
    report = load_into(other, model.state_dict())
    assert report.new == ["offline_predictor.weight", "offline_predictor.bias"] and not report.unused
    back = load_into(M2DViT(**FULL), other.state_dict())
    assert back.unused == report.new and "unused of the checkpoint: offline_predictor (2)" in str(back)


def test_a_task_layer_of_another_task_starts_at_random(model):
    other = M2D_AS_ViT(**FULL, off_emb_dim=9)
    before = other.offline_predictor.weight.clone()
    report = load_into(other, M2D_X_ViT(**FULL, off_emb_dim=5).state_dict())
    assert torch.equal(other.offline_predictor.weight, before)
    assert report.new == ["offline_predictor.weight", "offline_predictor.bias"]


def test_an_encoder_alone_starts_the_target_from_the_online_weights(model):
    encoder = {k: v for k, v in model.state_dict().items() if not k.startswith(("decoder_", "target_", "mask_token"))}
    other = M2DViT(**FULL)
    report = load_into(other, encoder)
    for name, value in model.state_dict().items():
        if name.startswith(("blocks.", "norm.")):
            assert torch.equal(other.state_dict()[f"target_{name}"], value)
    assert {name.split(".")[0] for name in report.copied} == {"target_blocks", "target_norm"}
    assert "target encoder copied from the online one" in str(report)
    assert {name.split(".")[0] for name in report.new} == {
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    }


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (dict(patch_size=(16, 4)), r"\[32, 1, 16, 16\] in the checkpoint and \[32, 1, 16, 4\] in the model: the patches differ"),
        (dict(embed_dim=64), r"\[1, 1, 32\] in the checkpoint and \[1, 1, 64\] in the model"),
        (dict(decoder_embed_dim=64), r"\[1, 1, 32\] in the checkpoint and \[1, 1, 64\] in the model"),
    ],
)
def test_other_shapes_are_refused_with_both(model, sizes, words):
    other = M2DViT(**dict(FULL, **sizes))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        load_into(other, model.state_dict())
    assert_same(other.state_dict(), before)


def test_nothing_of_the_encoder_is_refused(model):
    with pytest.raises(CheckpointError, match="no encoder blocks: only norm_stats"):
        load_into(model, {"norm_stats": torch.zeros(2)})


def test_mapped_memory_given_back_is_read_again(model, folder):
    """The pages of a mapping are dropped after copying; the tensors still read the same."""
    save_atomically(training_checkpoint(model), folder / "checkpoint-1.pth")
    weights = read_weights(folder)
    assert weights.mapped
    other = M2DViT(**FULL)
    load_into(other, weights.state, mapped=weights.mapped)
    assert_same(other.state_dict(), model.state_dict())
    assert_same(weights.state, model.state_dict())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.integers(1, 12), patch=st.sampled_from([(16, 16), (16, 4), (80, 4)]))
def test_any_input_length_loads(frames, patch):
    """What is loaded does not depend on the input length; only positions may differ."""
    sizes = dict(SMALL, depth=1, patch_size=patch)
    source = M2DEncoderViT(**dict(sizes, img_size=(80, 64)))
    target = M2DEncoderViT(**dict(sizes, img_size=(80, 16 * frames)))
    report = load_into(target, source.state_dict())
    assert report.resized == ([] if frames == 4 else ["pos_embed"])
    assert torch.equal(target.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_encoder_alone_needs_little_more_than_its_own_memory():
    """Out of a training checkpoint of six times its size."""
    benchmark = Path(__file__).resolve().parents[3] / "benchmarks" / "load_checkpoint.py"
    command = [sys.executable, str(benchmark), "--model", "m2d_vit_small", "--repeat", "1"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    ratios = [float(line.split(" = ")[1].split()[0]) for line in lines if line.startswith("runtime")]
    assert len(ratios) == 2 and max(ratios) <= 1.3, lines
