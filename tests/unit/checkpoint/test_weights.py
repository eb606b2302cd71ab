"""Checkpoints: names tell sizes, folders mean their newest file, every published layout is read."""

import argparse
import io
import pathlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import NAME, SMALL, assert_same, training_checkpoint

from m2d.checkpoint.spec import parse_sizes_by_name, spec_of_path, spec_of_settings, text_encoder_of_path
from m2d.checkpoint.weights import (
    CheckpointError,
    checkpoints_in,
    is_whole,
    load_file,
    read_weights,
    resolve,
    save_atomically,
)
from m2d.models.registry import M2DEncoderViT

# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly", ([80, 1001], [16, 16], "16k", "m2d_as_vit_base")),
        ("m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d", ([80, 1001], [16, 16], "16k", "m2d_vit_base")),
        ("m2d_vit_base-80x200p16x4-230529", ([80, 200], [16, 4], "16k", "m2d_vit_base")),
        ("m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT_enconly", ([80, 1001], [16, 16], "32k", "m2d_as_vit_base")),
        ("m2d_s_vit_base-80x608p80x2-230220", ([80, 608], [80, 2], "16k", "m2d_s_vit_base")),
        ("m2d_vit_base-80x608p16x16p16k-261122-bs512-e300", ([80, 608], [16, 16], "16k", "m2d_vit_base")),
        ("m2d_vit_base-80x208p16x16-random", ([80, 208], [16, 16], "16k", "m2d_vit_base")),
        ("msm_mae_vit_base-80x208p16x16", ([80, 208], [16, 16], "16k", "msm_mae_vit_base")),
        ("m2d_clap_vit_base-80x608p16x16-240128", ([80, 608], [16, 16], "16k", "m2d_clap_vit_base")),
        ("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025", ([80, 1001], [16, 16], "16k", "m2d_clap_vit_base")),
        ("m2d_clap_vit_base-80x1001p16x16p16kpN-2025-stage1.1", ([80, 1001], [16, 16], "16k", "m2d_clap_vit_base")),
        ("m2d_vit_base-80x608p16x16p16k-250826-AS+Resp400K", ([80, 608], [16, 16], "16k", "m2d_vit_base")),
        ("m2d_clap_vit_base-80x608p16x16p32kpA", ([80, 608], [16, 16], "32k", "m2d_clap_vit_base")),
        ("backup of m2d_vit_large-80x608p16x16.pth", ([80, 608], [16, 16], "16k", "m2d_vit_large")),
    ],
)
def test_released_names_tell_their_sizes(name, sizes):
    assert tuple(parse_sizes_by_name(name)) == sizes


@pytest.mark.parametrize(
    ("name", "letter"),
    [
        ("m2d_clap_vit_base-80x608p16x16-240128", "A"),
        ("m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025", "B"),
        ("m2d_clap_vit_base-80x1001p16x16pN", "N"),
        ("m2d_clap_vit_base-80x1001p16x16p32kpTIpR-x", "R"),
        ("no sizes", "A"),
    ],
)
def test_released_names_tell_their_text_encoder(name, letter):
    assert text_encoder_of_path(f"runs/{name}/checkpoint-30.pth") == text_encoder_of_path(f"runs/{name}.pth") == letter


@pytest.mark.parametrize("name", ["checkpoint-300", "m2d_vit_base-80x608", "80x608p16x16", "m2d_vit_base-80x608p16x16x3", ""])
def test_a_name_without_sizes_is_refused_with_the_pattern(name):
    with pytest.raises(ValueError, match=r"expected \{model\}.*m2d_vit_base-80x608p16x16"):
        parse_sizes_by_name(name)


def test_folder_before_file_name_before_contents(tmp_path):
    assert spec_of_path(tmp_path / NAME / "m2d_vit_base-80x208p16x4.pth").model == "m2d_vit_tiny"
    assert spec_of_path(tmp_path / "m2d_vit_base-80x208p16x4.pth").patch_size == [16, 4]
    assert spec_of_path(tmp_path / "checkpoint-1.pth") is None
    told = spec_of_settings({"model": "m2d_vit_base", "input_size": [80, 208], "patch_size": "16x4", "sr": "32k"})
    assert tuple(told) == ([80, 208], [16, 4], "32k", "m2d_vit_base")
    assert spec_of_settings({"model": "m2d_vit_base", "input_size": "80", "patch_size": "16x4"}) is None
    assert spec_of_settings({"model": "m2d_vit_base"}) is None


# ---------------------------------------------------------------- finding


def test_a_folder_means_its_newest_checkpoint(folder):
    for epoch in (9, 100, 20):
        (folder / f"checkpoint-{epoch}.pth").touch()
    (folder / "other.pth").touch()
    assert resolve(folder).name == "checkpoint-100.pth"
    assert [path.name for path in checkpoints_in(folder)] == ["checkpoint-9.pth", "checkpoint-20.pth", "checkpoint-100.pth"]


def test_a_folder_with_one_file_means_that_file(folder):
    with pytest.raises(CheckpointError, match="no checkpoint in the folder"):
        resolve(folder)
    (folder / "weights_ep69it3124-0.48494.pth").touch()
    assert resolve(folder).name == "weights_ep69it3124-0.48494.pth"
    (folder / "weights.safetensors").touch()
    with pytest.raises(CheckpointError, match="several checkpoints.*weights.safetensors"):
        resolve(folder)


def test_a_missing_file_offers_near_names(folder):
    (folder / "checkpoint-300.pth").touch()
    with pytest.raises(FileNotFoundError, match="there is checkpoint-300.pth"):
        resolve(folder / "checkpoint-30.pth")
    with pytest.raises(FileNotFoundError, match=f"there is {NAME}"):
        resolve(folder.parent / NAME[:-2] / "checkpoint-300.pth")


# ---------------------------------------------------------------- layouts


def test_published_training_checkpoint_with_a_namespace(model, folder):
    args = argparse.Namespace(
        lr=None,
        ratio=np.float32(0.7),
        count=np.int64(3),
        flag=np.bool_(True),
        dtype=np.dtype("float32"),
        output_dir=pathlib.PurePosixPath("/runs/a"),
        path=Path("data"),
        betas=(0.9, 0.95),
    )
    save_atomically({**training_checkpoint(model, 300), "args": args}, folder / "checkpoint-300.pth")
    weights = read_weights(folder)
    assert_same(weights.state, model.state_dict())
    assert weights.layout == "training checkpoint" and weights.epoch == 300 and not weights.head
    assert "decoder_norm.weight" in weights.state
    assert tuple(weights.spec) == ([80, 64], [16, 16], "16k", "m2d_vit_tiny")
    assert weights.norm_stats == (-6.5, 3.5)
    assert weights.args["ratio"] == np.float32(0.7) and weights.args["output_dir"] == "/runs/a"


def test_paths_and_scalars_of_other_systems_and_versions(tmp_path):
    """A Windows path, Python 3.13's pathlib._local, and numpy 1's and 2's names of a scalar: by their names in the pickle."""
    saved = io.BytesIO()
    torch.save({"p": Path("a/b"), "s": np.float32(2.5)}, saved)
    for old, new in (
        (b"cpathlib\n", b"cpathlib._local\n"),
        (b"PosixPath", b"WindowsPath"),
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
    ):
        with zipfile.ZipFile(saved) as source, zipfile.ZipFile(tmp_path / "x.pth", "w") as target:
            for name in source.namelist():
                content = source.read(name)
                target.writestr(name, content.replace(old, new) if name.endswith("data.pkl") else content)
        loaded = load_file(tmp_path / "x.pth")
        assert loaded["p"] == "a/b" and loaded["s"] == np.float32(2.5)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "backbone.", "module.ar.runtime.backbone."])
def test_prefixes_are_taken_off(model, folder, prefix):
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, folder / "weights.pth")
    assert_same(read_weights(folder).state, model.state_dict())


def test_blocks_compiled_one_by_one(model, folder):
    state = {name.replace("blocks.0.", "blocks.0._orig_mod."): value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, folder / "weights.pth")
    assert_same(read_weights(folder).state, model.state_dict())


def test_fine_tuned_by_evar(folder):
    encoder = M2DEncoderViT(**SMALL).state_dict()
    head = {"norm.running_mean": torch.rand(160), "norm.running_var": torch.rand(160)}
    head["norm.num_batches_tracked"] = torch.tensor(3)
    mlp = {"mlp.mlp.0.weight": torch.rand(7, 160), "mlp.mlp.0.bias": torch.rand(7)}
    state = {f"module.ar.runtime.backbone.{name}": value for name, value in encoder.items() if name != "norm_stats"}
    state |= {f"module.head.{name}": value for name, value in (head | mlp).items()}
    state["module.ar.runtime.to_spec.mel_basis"] = torch.rand(80, 201)
    torch.save(state, folder / "weights_ep1.pth")
    weights = read_weights(folder)
    assert_same(weights.state, {name: value for name, value in encoder.items() if name != "norm_stats"})
    assert weights.norm_stats is None and weights.layout == "fine-tuned model with its head"
    assert set(weights.head) == {
        "head_norm.running_mean",
        "head_norm.running_var",
        "head_norm.num_batches_tracked",
        "head.weight",
        "head.bias",
    }
    assert torch.equal(weights.head["head.weight"], mlp["mlp.mlp.0.weight"])


def test_own_training_checkpoint_tells_its_sizes_from_inside(model, tmp_path):
    args = dict(model="m2d_vit_tiny", input_size="80x64", patch_size=[16, 16], sr="32k")
    save_atomically(training_checkpoint(model, 2, args), tmp_path / "any.pth")
    assert tuple(read_weights(tmp_path / "any.pth").spec) == ([80, 64], [16, 16], "32k", "m2d_vit_tiny")


def test_safetensors_with_metadata(model, tmp_path):
    from safetensors.torch import save_file

    metadata = dict(model="m2d_vit_tiny", input_size="80x64", patch_size="16x16", sr="16k")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors", metadata)
    weights = read_weights(tmp_path / "w.safetensors")
    assert_same(weights.state, model.state_dict())
    assert weights.layout == "safetensors" and weights.spec.model == "m2d_vit_tiny" and weights.epoch is None
    whole = (tmp_path / "w.safetensors").read_bytes()
    for cut in (0, 4, 100, len(whole) - 1):
        (tmp_path / "w.safetensors").write_bytes(whole[:cut])
        with pytest.raises(CheckpointError, match="empty|damaged"):
            read_weights(tmp_path / "w.safetensors")


def test_the_old_format_of_torch_before_1_6(model, folder):
    torch.save(model.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
    weights = read_weights(folder)
    assert_same(weights.state, model.state_dict())
    assert not weights.mapped and is_whole(folder / "old.pth")
    whole = (folder / "old.pth").read_bytes()
    (folder / "old.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_file(folder / "old.pth")


def test_files_of_something_else(folder):
    path = folder / "weights.pth"
    for saved, words in (
        ({"conv.weight": torch.zeros(1)}, "no patch_embed.proj.weight in it, but such names as conv.weight"),
        ([1, 2], "holds a list, not a dict"),
        ({"epoch": 3}, "but no tensors"),
        ({f"{m}.patch_embed.proj.weight": torch.zeros(1) for m in "ab"}, "holds 2 models, under 'a.', 'b.'"),
    ):
        torch.save(saved, path)
        with pytest.raises(CheckpointError, match=words):
            read_weights(path)
