"""Checkpoints that are no checkpoints, torn or changed are told apart; a write is whole or not at all."""

import argparse
import os
import pickle
import random
import zipfile

import pytest
import torch
from checkpoint_files import NAME
from limits import file_size_limit

from m2d.checkpoint.weights import (
    CheckpointError,
    is_whole,
    load_file,
    read_weights,
    save_atomically,
    verify,
)

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
    """A limit on file size acts as a full disk: writing fails within a tensor."""
    path = tmp_path / "checkpoint-1.pth"
    save_atomically({"epoch": 1}, path)
    with file_size_limit(100_000):
        with pytest.raises(OSError, match="File too large"):
            save_atomically({"a": torch.zeros(100_000)}, path)
    assert os.listdir(tmp_path) == [path.name] and load_file(path) == {"epoch": 1}


def test_a_missing_folder_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_atomically({}, tmp_path / "none" / "checkpoint-1.pth")
