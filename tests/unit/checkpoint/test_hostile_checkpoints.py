"""Checkpoints from elsewhere: one line that names the file and what to do, whatever is in them."""

import argparse
import io
import os
import shlex
import subprocess
import sys
import zipfile

import pytest
import torch

from m2d.checkpoint.build import loaded_backbone, random_backbone
from m2d.checkpoint.file import CheckpointError, is_whole, load_file, verify
from m2d.checkpoint.training_state import load_training_state
from m2d.checkpoint.weights import load_into, read_weights
from m2d.models import registry
from m2d.utils.errors import FileError, UserError

NAME = "m2d_vit_tiny-80x64p16x16-261122-x"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return registry.build("m2d_vit_tiny_encoder_only", img_size=(80, 64), patch_size=(16, 16)).state_dict()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / NAME
    path.mkdir()
    return path


def use(path):
    weights = read_weights(path)
    return loaded_backbone(weights, encoder_only=True, dur_frames=None), weights


def refused(path, words=None):
    with pytest.raises(CheckpointError, match=words) as caught:
        use(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 1000
    assert isinstance(caught.value, FileError)


def changed(state, **changes):
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


NAN = float("nan")


@pytest.mark.parametrize(
    "stats",
    [
        torch.tensor([1.0]),
        torch.tensor(3.0),
        torch.zeros(0),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.tensor([NAN, 1.0]),
        torch.tensor([0.0, NAN]),
        torch.tensor([0.0, 0.0]),
        torch.tensor([0.0, -4.0]),
        torch.tensor([float("inf"), 4.0]),
        torch.tensor([1 + 2j, 4.0]),
    ],
)
def test_statistics_are_checked(state, folder, stats):
    torch.save(changed(state, norm_stats=stats), folder / "x.pth")
    refused(folder / "x.pth", "norm_stats")


@pytest.mark.parametrize("epoch", [[3], "3", {}, -1, NAN, 2.5, 10**30, torch.tensor([1, 2])])
def test_epochs_are_checked(state, folder, epoch):
    torch.save({"model": state, "optimizer": {}, "epoch": epoch}, folder / "x.pth")
    refused(folder / "x.pth", "epoch")
    with pytest.raises(CheckpointError, match=r"x\.pth.*epoch"):
        load_training_state(folder / "x.pth")


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": []},
        {"updates": "5"},
        {"updates": -5},
        {"updates_per_epoch": 0},
        {"meter": 3},
        {"meter": {"sums": 5, "count": 1, "skipped": 0}},
        {"scaler": [1]},
        {"lists": {"csv_main": 3}},
        {"effective_batch": None},
    ],
)
def test_what_a_run_continues_from_is_checked(state, folder, values):
    good = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "scaler": {}, "args": {"seed": 0}}
    torch.save(good, folder / "x.pth")
    assert load_training_state(folder / "x.pth")["epoch"] == 3
    with pytest.raises(CheckpointError, match=r"x\.pth.*missing required field"):
        load_training_state(folder / "x.pth", own=True)
    torch.save(good | values, folder / "x.pth")
    with pytest.raises(CheckpointError, match=rf"x\.pth.*{next(iter(values))}"):
        load_training_state(folder / "x.pth")


@pytest.mark.parametrize(
    "settings",
    [
        {"patch_size": "0x0"},
        {"patch_size": [0, 16]},
        {"patch_size": "16x-16"},
        {"patch_size": "160x16"},
        {"input_size": "80x999999999999"},
        {"input_size": [80, 10**400]},
        {"input_size": [80, float("inf")], "patch_size": [16, 16]},
    ],
)
def test_sizes_in_a_files_settings_are_checked(state, tmp_path, settings):
    good = {"model": "m2d_vit_tiny", "input_size": "80x64", "patch_size": "16x16", "sr": "16k"}
    torch.save({"model": state, "args": good | settings}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth")


@pytest.mark.parametrize("sizes", ["80x64p0x0", "80x999999999999p16x16", "8x64p16x16"])
def test_sizes_in_a_name_are_checked(state, tmp_path, sizes):
    name = f"m2d_vit_tiny-{sizes}-x"
    (tmp_path / name).mkdir()
    torch.save(state, tmp_path / name / "x.pth")
    refused(tmp_path / name / "x.pth", name)
    with pytest.raises(UserError, match=name):
        random_backbone(tmp_path / name / "random", True, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sr": "32k"}, r"16k.*32k"),
        ({"input_size": [80, 608]}, r"80x64.*80x608"),
        ({"patch_size": "16x4"}, r"16x16.*16x4"),
    ],
)
def test_a_name_that_contradicts_the_files_settings(state, folder, settings, words):
    own = {"model": "m2d_vit_tiny", "input_size": "80x64", "patch_size": [16, 16], "sr": "16k"}
    torch.save({"model": state, "args": argparse.Namespace(**own)}, folder / "x.pth")
    use(folder / "x.pth")
    torch.save({"model": state, "args": argparse.Namespace(**(own | settings))}, folder / "x.pth")
    refused(folder / "x.pth", words)


def test_settings_that_tell_a_part_contradict_too(state, tmp_path):
    (tmp_path / "m2d_vit_tiny-80x64p16x16p32k-x").mkdir()
    path = tmp_path / "m2d_vit_tiny-80x64p16x16p32k-x" / "x.pth"
    for args in ({"seed": 0}, {"sr": "32k"}, {"sr": None}, {"model": "m2d_x_vit_tiny"}):
        torch.save({"model": state, "args": args}, path)
        assert use(path)[1].spec.sr == "32k"
    torch.save({"model": state, "args": {"sr": "16k"}}, path)
    refused(path, r"32k.*16k")


def test_keys_that_are_no_names(state, folder):
    torch.save({1: torch.zeros(2), None: torch.zeros(1), **state}, folder / "x.pth")
    assert use(folder / "x.pth")[1].state.keys() == state.keys()
    torch.save({1: torch.zeros(2), "a": torch.zeros(1)}, folder / "x.pth")
    refused(folder / "x.pth", "no patch_embed")


def test_a_head_of_two_billion_classes(state, folder):
    """A view of one value costs nothing in the file, and 1.5 TB once it is copied."""
    fine_tuned = {f"module.ar.runtime.backbone.{name}": value for name, value in state.items()}
    fine_tuned["module.head.mlp.mlp.0.weight"] = torch.zeros(1, 192).expand(2 * 10**9, 192)
    torch.save(fine_tuned, folder / "x.pth")
    refused(folder / "x.pth", r"module\.head\.mlp\.mlp\.0\.weight")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 4).to_sparse(),
        torch.quantize_per_tensor(torch.zeros(4), 1.0, 0, torch.qint8),
        torch.zeros(4, device="meta"),
        torch.zeros(4, dtype=torch.complex64),
    ],
    ids=["sparse", "quantized", "meta", "complex"],
)
def test_tensors_that_are_no_weights(state, folder, tensor):
    torch.save(changed(state, norm__bias=tensor), folder / "x.pth")
    refused(folder / "x.pth")


@pytest.mark.parametrize(
    "name", "pos_embed cls_token offline_predictor.weight patch_embed.proj.weight blocks.0.norm1.bias".split()
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (1, 2, 3, 4, 5)])
def test_shapes_are_checked(state, folder, name, shape):
    torch.save({**state, name: torch.zeros(shape)}, folder / "x.pth")
    refused(folder / "x.pth")


def test_very_many_blocks(state, folder):
    more = {f"decoder_blocks.{i}.norm1.bias": torch.zeros(1) for i in range(2000)}
    torch.save({**state, **more}, folder / "x.pth")
    refused(folder / "x.pth", "blocks")


@pytest.mark.parametrize("saved", [[1, 2], "text", 5, None, torch.zeros(3), (1,)])
def test_something_else_than_a_dict(folder, saved):
    torch.save(saved, folder / "x.pth")
    refused(folder / "x.pth", "not a dict")
    with pytest.raises(CheckpointError, match="not a dict"):
        load_file(folder / "x.pth")


def test_a_deeply_nested_value(state, folder):
    # Built as a pickle by hand: Python's pickler is recursive, the reader is not.
    pickled = b"\x80\x02" + b"}" + b"X\x04\x00\x00\x00args" + b"]" * 5001 + b"a" * 5000 + b"s" + b"."
    save_zip(folder / "x.pth", {"x/data.pkl": pickled, "x/version": b"3\n", "x/byteorder": b"little"})
    refused(folder / "x.pth")


def save_zip(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def zipped_again(path):
    """Compress what torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    save_zip(path, members, zipfile.ZIP_DEFLATED)


def test_a_checkpoint_that_was_zipped_again(state, folder):
    path = folder / "x.pth"
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, path)
    zipped_again(path)
    model, weights = use(path)
    assert not weights.mapped and weights.epoch == 3
    assert torch.equal(model.state_dict()["blocks.1.mlp.fc1.weight"], state["blocks.1.mlp.fc1.weight"])
    verify(path)
    assert is_whole(path)


def test_a_small_file_that_unpacks_to_a_huge_one(folder):
    torch.save({"model": {"patch_embed.proj.weight": torch.zeros(2**27)}}, folder / "x.pth")
    zipped_again(folder / "x.pth")
    assert (folder / "x.pth").stat().st_size < 2**20
    refused(folder / "x.pth", "unpack")


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_newer_pickle_protocol_says_what_to_do(state, folder, protocol, zipped, monkeypatch):
    path = folder / "it's $(x).pth"
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    try:
        use(path)
    except CheckpointError as error:
        assert f"pickle protocol {protocol}" in str(error) and "\n" not in str(error)
        command = shlex.split(str(error).partition("python -c ")[2])
        assert len(command) == 1
        subprocess.run([sys.executable, "-c", command[0]], check=True, cwd=folder)
        use(next(folder.glob("*-weights.pth")))
    else:
        assert protocol == 3


def test_pipes_are_not_waited_for(folder):
    os.mkfifo(folder / "x.pth")
    refused(folder / "x.pth", "not a regular file")
    os.mkfifo(folder / "x.safetensors")
    refused(folder / "x.safetensors", "not a regular file")


def test_a_file_cut_while_its_tensors_are_mapped(state, folder):
    torch.save(state, folder / "x.pth")
    weights = read_weights(folder / "x.pth")
    model = registry.build("m2d_vit_tiny_encoder_only", img_size=(80, 64), patch_size=(16, 16))
    os.truncate(folder / "x.pth", 5000)
    with pytest.raises(CheckpointError, match=r"x\.pth was changed while it was read"):
        load_into(model, weights.state, mapped=weights.mapped)
    with pytest.raises(CheckpointError, match=r"x\.pth was changed while it was read"):
        loaded_backbone(weights, encoder_only=True, dur_frames=None)


# ---------------------------------------------------------------- a model that the checkpoint does not cover


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


@pytest.mark.parametrize("missing", "blocks.11. blocks.0.attn.qkv.weight patch_embed.proj.bias cls_token norm.weight".split())
def test_a_part_of_the_encoder_that_is_missing_is_refused_unless_asked_for(state, missing):
    model = registry.build("m2d_vit_tiny_encoder_only", img_size=(80, 64), patch_size=(16, 16))
    with pytest.raises(CheckpointError, match=missing.strip(".")):
        load_into(model, without(state, missing))
    report = load_into(model, without(state, missing), allow_missing=True)
    assert report.new and all(name.startswith(missing) for name in report.new)


def test_a_deeper_encoder_is_not_cut_silently(state):
    model = registry.build("m2d_vit_tiny_encoder_only", img_size=(80, 64), patch_size=(16, 16))
    more = {name.replace("blocks.0.", "blocks.12."): state[name] for name in state if name.startswith("blocks.0.")}
    with pytest.raises(CheckpointError, match=r"13 encoder blocks.*12"):
        load_into(model, {**state, **more})


def test_bytes_of_random_files(folder):
    for content in (b"PK\x03\x04" + bytes(100), b"\x80\x02" + bytes(50), b"\x80\x04\x95" + b"\xff" * 20, os.urandom(300)):
        (folder / "x.pth").write_bytes(content)
        refused(folder / "x.pth")
    (folder / "x.safetensors").write_bytes((2**63).to_bytes(8, "little") + io.BytesIO(b"{}").read())
    (folder / "x.pth").unlink()
    refused(folder / "x.safetensors")
