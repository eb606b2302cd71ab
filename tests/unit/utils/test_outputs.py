"""What a program may write: nothing it reads, and nothing it did not write."""

import os
from pathlib import Path

import pytest

from m2d.utils.errors import UserError
from m2d.utils.outputs import check_outputs, has_header, lists_only


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("file_name,label\na,1\n")
    return tmp_path


def refused(*args, **options) -> str:
    with pytest.raises(UserError) as raised:
        check_outputs(*args, **options)
    return str(raised.value)


def test_new_files_are_fine_in_folders_that_can_be_made():
    check_outputs(["out.npz", "out.csv", "not/there/yet/out.npz"], inputs=["in.csv", "missing.wav"])


def test_an_existing_file_needs_overwrite():
    Path("out.npz").touch()
    assert refused(["out.npz"]) == "out.npz is there already: give another name, or --overwrite to replace it"
    check_outputs(["out.npz"], overwrite=True)


def test_what_an_earlier_run_wrote_is_replaced():
    Path("own.csv").write_text("row,file_name\r\n1,a\n")
    check_outputs(["own.csv"], is_own=lambda path: has_header(path, ("row", "file_name")))
    assert "there already" in refused(["in.csv"], is_own=lambda path: has_header(path, ("row", "file_name")))


@pytest.mark.parametrize("spelling", ["in.csv", "./in.csv", "sub/../in.csv", "link.csv", "hard.csv", "linked/in.csv"])
def test_an_input_is_never_an_output(folder, spelling):
    Path("sub").mkdir()
    Path("link.csv").symlink_to("in.csv")
    os.link("in.csv", "hard.csv")
    Path("linked").symlink_to(folder)
    message = refused([spelling], inputs=["in.csv"], overwrite=True, is_own=lambda path: True)
    assert "is an input (in.csv)" in message


def test_one_file_is_not_written_twice(folder):
    Path("linked").symlink_to(folder)
    assert "written twice" in refused(["a.csv", "linked/a.csv"])


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling link"])
def test_only_files_are_replaced(kind):
    {"folder": os.mkdir, "pipe": os.mkfifo, "dangling link": lambda path: os.symlink("nowhere", path)}[kind]("out.npz")
    assert "something else than a file" in refused(["out.npz"], overwrite=True)


def test_folders_that_cannot_be_written():
    assert "in.csv is not a folder" in refused(["in.csv/out.npz"])


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that refuses root too")
@pytest.mark.parametrize("path", ["/proc/out.npz", "/proc/new/folder/out.npz"])
def test_folders_that_take_no_files_whatever_their_permissions(path):
    assert refused([path]).startswith(f"{path} cannot be written: /proc takes no files (")


def test_the_check_leaves_no_trace(folder):
    check_outputs(["out.npz", "new/out.npz"])
    assert [path.name for path in folder.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    "text, own", [("a,b\n", True), ("a,b\r\n1,2", True), ("a,b", True), ("a,b,c\n", False), ("a\n", False), ("", False)]
)
def test_headers(text, own):
    Path("x.csv").write_text(text)
    assert has_header("x.csv", ("a", "b")) is own
    assert not has_header("missing.csv", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("file_name\na.npy\n", True),
        ('file_name\n"a.npy"\r\nb.npy\n', True),
        ("file_name\n", True),
        ("file_name\nc.npy\n", False),
        ("file_name,label\na.npy,1\n", False),
        ("file_name\na.npy,1\n", False),
        ("", False),
        ("\udcff", False),
    ],
)
def test_lists_of_known_names(text, own):
    Path("x.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert lists_only("x.csv", ["file_name"], {("a.npy",), ("b.npy",)}) is own
    assert not lists_only("x.csv", ["file_name", "label"], {("a.npy", "2")})
    assert not lists_only("missing.csv", ["file_name"], {("a.npy",)})
