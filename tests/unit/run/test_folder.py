"""A run's folder: nothing in it that the run did not write is replaced or removed."""

import os

import pytest

from m2d.run.checkpoint_writer import CheckpointWriter
from m2d.run.folder import RunFolder
from m2d.utils.errors import UserError


@pytest.mark.parametrize("name", ["checkpoint-300.pth", "last.pth", "last-previous.pth", "checkpoint-best.pth", "log.txt"])
def test_files_of_a_runs_names_without_a_run_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"released weights")
    with pytest.raises(UserError, match=f"holds {name}, which no run of this program wrote"):
        RunFolder(tmp_path).find_run(auto_resume=True)
    with pytest.raises(UserError, match=f"holds {name}, which no run of this program wrote"):
        RunFolder(tmp_path).begin({})
    assert os.listdir(tmp_path) == [name]


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run/run\.json cannot be written: .*/file is not a folder"):
        RunFolder(tmp_path / "file" / "run").find_run(auto_resume=False)


def test_other_files_are_left_alone(tmp_path):
    others = [".notes.tmp", "notes.txt", ".m2d-tmp", ".x.m2d-tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    leftover = tmp_path / f".last.pth.{1:016x}.m2d-tmp"
    leftover.touch()
    RunFolder(tmp_path).begin({"seed": 1})
    assert not leftover.exists() and all((tmp_path / name).read_bytes() == b"mine" for name in others)


def test_a_link_at_the_locks_name_is_not_followed(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_bytes(b"precious")
    folder.mkdir()
    (folder / "run.lock").symlink_to(victim)
    with pytest.raises(UserError, match="is there as a link"):
        RunFolder(folder).begin({})
    assert victim.read_bytes() == b"precious" and os.listdir(folder) == ["run.lock"]


def test_links_at_the_names_of_checkpoints_are_replaced_not_followed(tmp_path, monkeypatch):
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_bytes(b"precious")
    folder.mkdir()
    for name in ("last.new.pth", "checkpoint-1.pth"):
        (folder / name).symlink_to(victim)

    def no_links(*paths):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    saver = CheckpointWriter(folder, save_minutes=10)
    saver.save({"epoch": 1}, epoch=1, wait=True)
    assert not saver.failed and victim.read_bytes() == b"precious"
    assert sorted(os.listdir(folder)) == ["checkpoint-1.pth", "last.pth"]
    assert (folder / "last.pth").read_bytes() == (folder / "checkpoint-1.pth").read_bytes()


@pytest.mark.parametrize(
    "text", ["{}", "[]", "", "{", "5", '{"starts": 3, "settings": {}}', '{"starts": [1], "settings": {}}', "[" * 100_000]
)
def test_a_run_json_of_something_else_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    run = RunFolder(tmp_path)
    assert run.find_run(auto_resume=True) is None
    with pytest.raises(UserError, match=r"run\.json: not what a training run writes") as caught:
        run.begin({})
    assert "\n" not in str(caught.value) and (tmp_path / "run.json").read_text() == text
