"""Archives that may hold anything: they are listed and read, or refused, and nothing else happens."""

import zipfile
from pathlib import Path

import pytest
from archives import write_parquet, write_tar, write_zip
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.audio.sources import parquet, zip_archive
from m2d.audio.sources.archive_file import read_range
from m2d.audio.sources.find import find_archives, list_members
from m2d.audio.sources.member import MOST_BYTES, plain_name
from m2d.utils.errors import FileError

FILES = {"a.wav": b"RIFF" * 40, "sub/b.flac": b"fLaC" * 300, "é.ogg": b"OggS"}
CHANGES = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    stored = write_zip(folder / "stored.zip", FILES, zipfile.ZIP_STORED)
    return {"tar": write_tar(folder / "x.tar", FILES), "zip": write_zip(folder / "x.zip", FILES), "stored": stored}


@pytest.mark.parametrize("kind", ["tar", "zip", "stored"])
@settings(max_examples=150, deadline=None)
@given(changes=CHANGES, keep=st.floats(0.1, 1))
def test_a_changed_archive_is_read_or_refused(whole, kind, changes, keep):
    content = bytearray(whole[kind].read_bytes())
    for place, value in changes:
        content[int(place * len(content))] = value
    changed = whole[kind].with_name(f"changed-{whole[kind].name}")
    changed.write_bytes(content[: int(keep * len(content))])
    try:
        found = list_members([str(changed)], (".wav", ".flac", ".ogg"))
    except FileError as error:
        assert str(changed) in str(error)
        return
    for member in found.members:
        assert plain_name(member.name) == member.name
        try:
            assert len(member.place.read()) <= max(len(content), *map(len, FILES.values()))
        except ValueError as error:
            assert str(error).startswith("is ")
    assert all("\n" not in reason for reason in found.left_out.values())


@pytest.mark.parametrize(
    ("name", "plain"),
    [("a.wav", "a.wav"), ("./a//b.wav", "a/b.wav"), ("../a.wav", None), ("a/../b.wav", None), ("/a.wav", None), ("", None)],
)
def test_names_stay_below_their_archive(name, plain):
    assert plain_name(name) == plain


def test_patterns_name_archives_and_folders_do_not(tmp_path):
    (tmp_path / "[x].tar").mkdir()
    assert find_archives(tmp_path) is None and find_archives(tmp_path / "[x].tar") is None
    for name in ("b.tar", "a.zip", "c.txt"):
        (tmp_path / name).touch()
    assert find_archives(tmp_path / "?.*") == [str(tmp_path / "a.zip"), str(tmp_path / "b.tar")]
    with pytest.raises(FileNotFoundError, match="no archive"):
        find_archives(tmp_path / "*.parquet")


def test_a_deflated_member_takes_no_more_memory_than_is_allowed(tmp_path):
    archive = write_zip(tmp_path / "x.zip", {"a.wav": bytes(1000)})
    content = archive.read_bytes()
    archive.write_bytes(content.replace((1000).to_bytes(4, "little"), (MOST_BYTES + 1).to_bytes(4, "little")))
    found = list_members([str(archive)], (".wav",))
    assert not found.members and "at most 1024 are read" in found.left_out["a.wav"]


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_a_directory_or_a_footer_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, kind):
    path = tmp_path / f"x.{kind}"
    write_zip(path, FILES) if kind == "zip" else write_parquet(path, list(FILES.items()))
    assert len(list_members([str(path)], (".wav", ".flac", ".ogg")).members) == 3
    monkeypatch.setattr(zip_archive, "_MOST_DIRECTORY_BYTES", 100)
    monkeypatch.setattr(parquet, "_MOST_FOOTER_BYTES", 100)
    with pytest.raises(FileError, match=r"a (directory|footer) of .* are read"):
        list_members([str(path)], (".wav", ".flac", ".ogg"))


@pytest.mark.parametrize("begin", [-1, 1 << 63])
def test_a_place_outside_any_file_is_an_error_of_the_member(whole, begin):
    with pytest.raises(ValueError, match="is damaged"):
        read_range(str(whole["tar"]), begin, 10)
