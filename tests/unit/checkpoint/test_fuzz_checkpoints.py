"""Checkpoints with changed bytes: CheckpointError or weights; never a crash, no code run, bounded memory."""

import argparse
import io
import pickletools
import zipfile

import pytest
import torch
from fuzz import BUDGETS, changed, json_values, run_fuzz
from hypothesis import strategies as st

from m2d.checkpoint.build import loaded_backbone
from m2d.checkpoint.errors import CheckpointError
from m2d.checkpoint.file import is_whole
from m2d.checkpoint.training_state import load_training_state
from m2d.checkpoint.weights import load_into, read_weights
from m2d.models.registry import M2DEncoderViT

SMALL = dict(img_size=(80, 32), patch_size=(80, 16), embed_dim=16, depth=2, num_heads=2, norm_stats=(-7.0, 4.0))
SETTINGS = dict(model="m2d_vit_tiny", input_size="80x32", patch_size=[80, 16], sr="16k")


@pytest.fixture(scope="module")
def saved():
    torch.manual_seed(0)
    state = M2DEncoderViT(**SMALL).state_dict()
    return {"model": state, "optimizer": {"state": {}, "param_groups": []}, "epoch": 3, "args": argparse.Namespace(**SETTINGS)}


def saved_bytes(value, **options):
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def use_file(path):
    """All that reads a checkpoint; what one refuses, the others may take."""
    refused = None
    is_whole(path)
    for read in (load_training_state, read_and_load):
        try:
            read(path)
        except CheckpointError as error:
            refused = error
    if refused is not None:
        raise refused


def read_and_load(path):
    weights = read_weights(path)
    if weights.spec is not None:
        with_refusal(lambda: loaded_backbone(weights, encoder_only=True, dur_frames=None))
    load_into(M2DEncoderViT(**SMALL), weights.state, mapped=weights.mapped)


def with_refusal(work):
    try:
        work()
    except CheckpointError:
        pass


def run(inputs, path, examples, write=None):
    def use(data):
        (write or path.write_bytes)(data)
        use_file(path)

    run_fuzz(inputs, use, (CheckpointError,), examples, most_mib=400)


@BUDGETS
@pytest.mark.parametrize("zipped", [True, False])
def test_bytes_of_a_pth(saved, tmp_path, zipped, examples):
    good = saved_bytes(saved, _use_new_zipfile_serialization=zipped)
    run(changed(good), tmp_path / "x.pth", examples)


@BUDGETS
def test_bytes_of_safetensors(saved, tmp_path, examples):
    from safetensors.torch import save

    settings = {key: str(value) if isinstance(value, str) else "80x16" for key, value in SETTINGS.items()}
    good = save(saved["model"], metadata=settings)
    run(changed(good), tmp_path / "x.safetensors", examples)


@BUDGETS
def test_pickles_in_a_whole_archive(saved, tmp_path, examples):
    """The bytes that PyTorch interprets, in a ZIP archive that is as it should be."""
    with zipfile.ZipFile(io.BytesIO(saved_bytes(saved))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith("data.pkl"))
    path = tmp_path / "x.pth"

    def write(data):
        with zipfile.ZipFile(path, "w") as archive:
            for each, content in members.items():
                archive.writestr(each, data if each == name else content)

    boundaries = [position for _, _, position in pickletools.genops(members[name])]
    opcodes = st.builds(
        lambda at, code: members[name][:at] + code + members[name][at + 1 :],
        st.sampled_from(boundaries),
        st.sampled_from([bytes([op.code.encode("latin-1")[0]]) for op in pickletools.opcodes]),
    )
    run(st.one_of(changed(members[name]), opcodes), path, examples, write)


@BUDGETS
def test_values_of_a_checkpoint(saved, tmp_path, examples):
    """Whole files whose values are of any type."""
    path = tmp_path / "x.pth"
    numbers = st.sampled_from([0.0, -1.0, float("nan"), float("inf"), 4.0])
    tensors = st.builds(
        lambda values, dtype: torch.tensor(values).to(dtype),
        st.lists(numbers, max_size=4),
        st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64, torch.float16]),
    )
    anything = st.one_of(json_values(), tensors)
    top = st.dictionaries(
        st.sampled_from(["model", "optimizer", "epoch", "args", "scaler", "updates", "meter", "lists", "classes"]), anything
    )
    settings = st.dictionaries(
        st.sampled_from(sorted(SETTINGS)), st.one_of(anything, st.from_regex(r"[0-9]{1,20}x-?[0-9]{1,20}"))
    )
    names = [*saved["model"], "decoder_blocks.0.x", "offline_predictor.weight", "head.weight", 5]
    weights = st.dictionaries(st.sampled_from(names), anything, max_size=2)

    def write(change):
        more, told, state = change
        torch.save({**saved, "model": {**saved["model"], **state}, "args": {**SETTINGS, **told}, **more}, path)

    run(st.tuples(top, settings, weights), path, examples, write)
