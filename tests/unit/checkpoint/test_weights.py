"""Checkpoints: every published layout is read, no code is run, a torn file is found, a write is whole or not at all."""

import argparse
import io
import logging
import os
import pathlib
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import file_size_limit
from web_server import WebServer, breaking, content, redirect, trust

from m2d.checkpoint.spec import parse_sizes_by_name, spec_of_path, spec_of_settings, text_encoder_of_path
from m2d.checkpoint.weights import (
    CheckpointError,
    checkpoints_in,
    is_whole,
    load_file,
    load_into,
    read_weights,
    resolve,
    save_atomically,
    verify,
)
from m2d.models.registry import M2D_AS_ViT, M2D_X_ViT, M2DEncoderViT, M2DViT

SMALL = dict(img_size=(80, 64), patch_size=(16, 16), embed_dim=32, depth=2, num_heads=2)
FULL = dict(SMALL, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)
NAME = "m2d_vit_tiny-80x64p16x16-261122-x"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return M2DViT(**FULL, norm_stats=(-6.5, 3.5))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / NAME
    path.mkdir()
    return path


def training_checkpoint(model, epoch=1, args=None):
    return {"model": model.state_dict(), "optimizer": {"state": {}}, "epoch": epoch, "scaler": {}, "args": args or {"seed": 0}}


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


def assert_same(state, expected):
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


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


# ---------------------------------------------------------------- what is no checkpoint


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_asks_to_run_code_is_refused_by_name_and_does_not_run(folder, new_format):
    trace = folder / "was-run"
    path = folder / "checkpoint-1.pth"
    saved = {"model": {}, "args": Malicious(f"touch {trace}")}
    torch.save(saved, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointError) as error:
        read_weights(folder)
    assert "posix.system" in str(error.value) and "If you trust" in str(error.value) and "weights_only=False" in str(error.value)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the test's pickle does nothing: it proves nothing"


def test_the_allow_list_holds_only_while_reading(folder):
    torch.save({"args": argparse.Namespace()}, folder / "a.pth")
    load_file(folder / "a.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(folder / "a.pth", weights_only=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Not Found", "web page"),
        (b"<html>", "web page"),
        (b"just some text\n" * 50, "damaged, or no checkpoint"),
        (b"PK\x03\x04" + bytes(200), "truncated"),
        (b"\x80\x02}q\x00", "damaged, or no checkpoint"),
        (pickle.dumps({"a": 1}, protocol=2), "damaged, or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_says_what_it_is(folder, content, words):
    (folder / "checkpoint-1.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as error:
        load_file(folder)
    assert "checkpoint-1.pth" in str(error.value) and "\n" not in str(error.value)


def test_a_zip_archive_names_the_checkpoint_inside(folder):
    with zipfile.ZipFile(folder / "released.pth", "w") as archive:
        archive.writestr(f"{NAME}/checkpoint-300.pth", b"x")
    with pytest.raises(CheckpointError, match=f"zip archive that holds {NAME}/checkpoint-300.pth: unpack it"):
        load_file(folder / "released.pth")


# ---------------------------------------------------------------- torn and changed files


@pytest.fixture(scope="module")
def whole_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "checkpoint-1.pth"
    save_atomically(training_checkpoint(model), path)
    return path


def test_every_tenth_of_a_file_is_torn(whole_file, tmp_path):
    content = whole_file.read_bytes()
    assert is_whole(whole_file) and verify(whole_file) is None
    assert not is_whole(tmp_path / "none.pth")
    for tenth in range(10):
        (tmp_path / "cut.pth").write_bytes(content[: len(content) * tenth // 10])
        assert not is_whole(tmp_path / "cut.pth"), tenth
    (tmp_path / "cut.pth").write_bytes(content[:-1])
    assert not is_whole(tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    assert not is_whole(tmp_path / "cut.pth"), "zeros where blocks never reached the disk"


def flatten(value, prefix=""):
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flatten(item, f"{prefix}.{name}").items()}
    return {prefix: value}


def same_content(a, b):
    a, b = flatten(a), flatten(b)
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_a_changed_bit_is_found_wherever_it_matters(tmp_path):
    """A bit at a random place, and in each of the last 600 bytes and of all headers: found, or the content is the same."""
    path, flipped = tmp_path / "a.pth", tmp_path / "b.pth"
    saved = {"model": {f"w{i}": torch.randn(40) for i in range(4)}, "epoch": 3}
    save_atomically(saved, path)
    content = path.read_bytes()
    rng = random.Random(0)
    places = list(range(0, len(content), 3)) + list(range(len(content) - 600, len(content)))
    found = 0
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        flipped.write_bytes(changed)
        if is_whole(flipped):
            assert same_content(load_file(flipped), saved), f"byte {place} of {len(content)}"
        else:
            found += 1
    assert found > len(places) // 5


# ---------------------------------------------------------------- writing


def test_a_write_leaves_one_whole_file_with_the_usual_permissions(tmp_path):
    path = tmp_path / "checkpoint-1.pth"
    (tmp_path / "plain").touch()
    for value in (1, 2):
        save_atomically({"epoch": value}, path)
        assert load_file(path) == {"epoch": value}
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1.pth", "plain"]
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("obj", [{"a": lambda: 0}, {"a": torch.zeros(3), "b": (x for x in [])}])
def test_a_failed_write_leaves_the_old_file_and_nothing_aside(tmp_path, obj):
    path = tmp_path / "checkpoint-1.pth"
    save_atomically({"epoch": 1}, path)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_atomically(obj, path)
    assert os.listdir(tmp_path) == [path.name] and load_file(path) == {"epoch": 1}


def test_a_full_disk_is_an_oserror_and_leaves_nothing_aside(tmp_path):
    """A limit on file size stands in for a full disk: writing fails in the midst of a tensor."""
    path = tmp_path / "checkpoint-1.pth"
    save_atomically({"epoch": 1}, path)
    with file_size_limit(100_000):
        with pytest.raises(OSError, match="File too large"):
            save_atomically({"a": torch.zeros(100_000)}, path)
    assert os.listdir(tmp_path) == [path.name] and load_file(path) == {"epoch": 1}


def test_a_missing_folder_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_atomically({}, tmp_path / "none" / "checkpoint-1.pth")


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


def test_a_task_layer_of_another_task_starts_anew(model):
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


# ---------------------------------------------------------------- addresses


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def server(ca, monkeypatch, tmp_path):
    """An https server on loopback, and an empty cache."""
    monkeypatch.setenv("M2D_CACHE", str(tmp_path / "cache"))
    trust(ca, tmp_path, monkeypatch)
    running = WebServer(ca)
    yield running
    running.close()


PLACE = f"/releases/{NAME}/checkpoint-300.pth"


def cached(tmp_path):
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_address_is_fetched_once_and_keeps_its_names(model, whole_file, server, caplog):
    body = whole_file.read_bytes()
    server.answers[PLACE] = content(body)
    with caplog.at_level(logging.INFO, "m2d"):
        weights = read_weights(server.address + PLACE)
    assert weights.spec.model == "m2d_vit_tiny" and weights.path.read_bytes() == body
    assert f"({len(body) / 1e6:.1f} MB)" in caplog.text
    assert resolve(server.address + PLACE) == weights.path and len(server.asked) == 1
    assert resolve(weights.path.parent) == weights.path  # its checksum beside it is no second checkpoint


def test_a_broken_connection_has_no_name_and_is_resumed(whole_file, server, tmp_path):
    body = whole_file.read_bytes()
    server.answers[PLACE] = breaking(body, 1000)
    with pytest.raises(CheckpointError, match=f"broke off after 3000 of {len(body)} bytes"):
        resolve(server.address + PLACE)
    assert not list((tmp_path / "cache").glob("*/*/checkpoint-300.pth"))
    server.answers[PLACE] = content(body)
    assert resolve(server.address + PLACE).read_bytes() == body and server.asked[-1][1] == "bytes=3000-"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("login page", "is a web page, not a checkpoint"),
        ("short", "is truncated"),
        ("bad zip", "is damaged"),
        ("flipped", "is damaged"),
        ("two", "is an archive of 2 checkpoints"),
        ("empty", "is empty"),
        ("pickle", "asks to run"),
    ],
)
def test_what_is_refused_is_not_cached(whole_file, server, tmp_path, kind, words):
    body = bytearray(whole_file.read_bytes())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name in ("a.pth", "b.pth")[: 1 + (kind == "two")]:
            target.writestr(f"{NAME}/{name}", bytes(body))
    asking = io.BytesIO()
    torch.save({"model": print}, asking)
    bad = bytearray(archive.getvalue())
    bad[len(bad) // 2] ^= 1
    body[len(body) // 2] ^= 1
    bodies = {"login page": b"<!DOCTYPE html><title>Log in</title>", "short": whole_file.read_bytes()[:-2000], "bad zip": bad}
    bodies |= {"flipped": body, "two": archive.getvalue(), "empty": b"", "pickle": asking.getvalue()}
    server.answers[PLACE] = content(bytes(bodies[kind]), length=-1)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words) as raised:
            resolve(server.address + PLACE)
    assert len(server.asked) == 2 and cached(tmp_path) == [] and str(tmp_path) not in str(raised.value)


def test_addresses_that_cannot_be_fetched(server):
    with pytest.raises(CheckpointError, match=r"could not be fetched \(Not Found\); give a local file"):
        resolve(server.address + PLACE)
    with pytest.raises(CheckpointError, match="only https addresses"):
        resolve("http://example.org/a.pth")
    server.answers[PLACE] = redirect("http://127.0.0.1:1/a.pth")
    with pytest.raises(CheckpointError, match="only https is followed"):
        resolve(server.address + PLACE)


def test_a_released_archive_is_unpacked(whole_file, server):
    """The published addresses are zip archives of a folder with one checkpoint."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(f"{NAME}/weights_ep1.pth", whole_file.read_bytes())
        target.writestr(f"{NAME}/readme.txt", "x")
        target.writestr(f"__MACOSX/{NAME}/._weights_ep1.pth", "x")
    place = f"/releases/v0.1.0/{NAME}.zip"
    server.answers[place] = content(archive.getvalue())
    path = resolve(server.address + place)
    assert path.parent.name == NAME and path.name == "weights_ep1.pth" and read_weights(path).spec is not None
    assert resolve(server.address + place) == path and len(server.asked) == 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_encoder_alone_needs_little_more_than_its_own_memory():
    """Out of a training checkpoint of six times its size."""
    benchmark = Path(__file__).resolve().parents[3] / "benchmarks" / "load_checkpoint.py"
    command = [sys.executable, str(benchmark), "--model", "m2d_vit_small", "--repeat", "1"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    ratios = [float(line.split(" = ")[1].split()[0]) for line in lines if line.startswith("runtime")]
    assert len(ratios) == 2 and max(ratios) <= 1.3, lines
