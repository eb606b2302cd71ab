"""Files written atomically: whole or not at all, never through links, and nobody else's files removed."""

import csv
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from m2d.utils import atomic_file
from m2d.utils.atomic_file import (
    LEFTOVER_SECONDS,
    is_temporary,
    open_atomic,
    remove_leftovers,
    write_bytes,
    write_csv,
    write_figure,
    write_npz,
    write_text,
)
from m2d.utils.outputs import drawn_by


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_file_appears_whole_when_the_block_ends(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with open_atomic(path) as file:
        file.write(b"new content")
        file.flush()
        assert path.read_bytes() == b"old"
        temporary = [name for name in names(tmp_path) if name != "a.bin"]
        assert len(temporary) == 1 and is_temporary(tmp_path / temporary[0]) and temporary[0].startswith(".a.bin.")
    assert path.read_bytes() == b"new content" and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")])
def test_an_error_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), open_atomic(path) as file:
        file.write(b"half")
        raise error
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_is_there_can_be_kept(tmp_path, monkeypatch, has_links):
    def refuse(*_):
        raise PermissionError("no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a"
    write_text(path, "first", replace=False)
    with pytest.raises(FileExistsError):
        write_text(path, "second", replace=False)
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["a"]


def test_links_at_the_place_of_a_temporary_are_not_followed(tmp_path, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    (tmp_path / f".a.bin.{'00' * 8}.m2d-tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_bytes(tmp_path / "a.bin", b"written through")
    assert victim.read_bytes() == b"precious" and not (tmp_path / "a.bin").exists()
    assert (tmp_path / f".a.bin.{'00' * 8}.m2d-tmp").is_symlink()


def test_a_link_of_the_files_own_name_is_replaced_not_followed(tmp_path):
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "a").symlink_to("other")
    write_bytes(tmp_path / "a", b"mine")
    assert (tmp_path / "other").read_bytes() == b"other" and not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_file_and_folder_are_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (steps.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("rename"), replace(*paths)))
    write_bytes(tmp_path / "a", b"x")
    assert steps == ["file", "rename", "folder"]
    steps.clear()
    with open_atomic(tmp_path / "b", durable=False) as file:
        file.write(b"x")
    assert steps == ["rename"] and (tmp_path / "b").read_bytes() == b"x"


def test_writers_of_one_file_do_not_mix(tmp_path):
    path, contents = tmp_path / "a", [bytes([i]) * 300_000 for i in range(8)]
    threads = [threading.Thread(target=lambda c=c: [write_bytes(path, c) for _ in range(5)]) for c in contents]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            seen.add(path.read_bytes())
    for thread in threads:
        thread.join()
    assert seen <= set(contents) and names(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "é" * 80 + ".npy", ".hidden", "a\nb", "\udcff.npy", "a.m2d-tmp"])
def test_any_name_can_be_written(tmp_path, name):
    with open_atomic(tmp_path / name) as file:
        file.write(b"x")
        assert all(is_temporary(tmp_path / other) for other in names(tmp_path))
    assert names(tmp_path) == [name] and not is_temporary(tmp_path / name)


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with open_atomic("a") as file:
        file.write(b"x")
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert names(tmp_path) == ["a", "elsewhere"]


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(tmp_path):
    old, young = f".a.{'0' * 16}.m2d-tmp", f".b.{'f' * 16}.m2d-tmp"
    others = [".notes.tmp", "x.m2d-tmp", f".a.{'0' * 15}.m2d-tmp", f"a.{'0' * 16}.m2d-tmp", ".lms.tmp", f".c.{'0' * 16}.m2d-tmp~"]
    for name in (old, young, *others):
        (tmp_path / name).touch()
        if name != young:
            os.utime(tmp_path / name, (0, time.time() - LEFTOVER_SECONDS - 5))
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([young, *others])
    remove_leftovers(tmp_path, seconds=0)
    assert names(tmp_path) == sorted(others)
    remove_leftovers(tmp_path / "no such folder")


def test_a_killed_writer_leaves_what_is_recognised(tmp_path):
    child = os.fork()
    if child == 0:
        with open_atomic(tmp_path / "a") as file:
            file.write(b"x")
            os._exit(0)
    os.waitpid(child, 0)
    assert len(names(tmp_path)) == 1 and is_temporary(tmp_path / names(tmp_path)[0])


rows = st.lists(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=2), max_size=4
)


@given(rows=rows)
def test_csv_reads_back_whatever_the_names(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    write_csv(path, ("file_name", "reason"), rows)
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["file_name", "reason"], *rows]


def test_csv_quotes_what_ends_a_row_and_ends_its_own_by_newlines(tmp_path):
    write_csv(
        tmp_path / "a.csv", ("file_name", "n"), [("a\rb", 1), ("a\nb", 2.5), ('a"b', 3), ("a,b", 4), ("\udcff", 5), ("", 6)]
    )
    assert (tmp_path / "a.csv").read_bytes() == (b'file_name,n\n"a\rb",1\n"a\nb",2.5\n"a""b",3\n"a,b",4\n\\udcff,5\n,6\n')


def test_text_npz_and_figures(tmp_path):
    write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()
    write_npz(tmp_path / "a.npz", np.arange(3), named=np.ones((2, 2)))
    with np.load(tmp_path / "a.npz") as saved:
        assert saved.files == ["named", "arr_0"] and np.array_equal(saved["arr_0"], np.arange(3)) and saved["named"].sum() == 4
    figure = Figure()
    figure.subplots().plot([1, 2])
    for suffix, magic in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")):
        write_figure(tmp_path / f"a.{suffix}", figure, "m2d check")
        assert (tmp_path / f"a.{suffix}").read_bytes().startswith(magic)
        assert drawn_by(tmp_path / f"a.{suffix}", "m2d check") and not drawn_by(tmp_path / f"a.{suffix}", "m2d tag")


def test_a_full_disk_is_an_os_error_with_its_number(tmp_path, monkeypatch):
    def full(path, mode):
        return open("/dev/full", "wb")  # noqa: SIM115

    monkeypatch.setattr(atomic_file, "open", full, raising=False)
    for write in (
        lambda: write_bytes(tmp_path / "a", bytes(100)),
        lambda: write_csv(tmp_path / "a", ("x", "y"), [("a", "b")] * 9000),
        lambda: write_npz(tmp_path / "a", np.zeros(100_000)),
    ):
        with pytest.raises(OSError) as raised:
            write()
        assert raised.value.errno == 28
