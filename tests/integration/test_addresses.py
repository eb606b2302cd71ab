"""Converting lists of addresses: by fsspec's file system in memory, which reads as those of the web and of s3 do."""

import sys
from pathlib import Path

import fsspec
import pytest
from archives import files_in
from audio_files import targets, write

from m2d.audio.sources import addresses
from m2d.audio.sources.addresses import Address, public_name
from m2d.data.convert_folder import convert_wav
from m2d.utils.errors import FileError, UserError


@pytest.fixture
def remote(tmp_path):
    """Sounds in a folder, and the same in memory; returns the folder."""
    files = fsspec.filesystem("memory")
    for i in range(5):
        path = write(tmp_path / f"sounds/{i % 2}/{i} é.wav", seed=i)
        files.pipe(f"/bucket/x/{path.relative_to(tmp_path / 'sounds')}", path.read_bytes())
    yield tmp_path / "sounds"
    files.rm("/bucket", recursive=True)


def write_list(path: Path, names: list[str], header: str = "file_name") -> Path:
    path.write_text("\n".join([*([header] if header else []), *names]) + "\n")
    return path


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["csv", "txt", "columns"])
def test_a_list_of_addresses_gives_the_files_of_a_folder(tmp_path, remote, kind, workers):
    names = [f"memory://bucket/x/{name}" for name in files_in(remote)]
    rows = [f"1,{name}" for name in names] if kind == "columns" else names
    source = write_list(tmp_path / f"list.{'txt' if kind == 'txt' else 'csv'}", rows, "id,file_name" if kind == "columns" else "")
    convert_wav(remote, tmp_path / "local")
    report = convert_wav(source, tmp_path / "fetched", workers=workers)
    assert not report.failed and files_in(tmp_path / "fetched") == files_in(tmp_path / "local") != {}


def test_what_cannot_be_fetched_is_named_without_its_secrets(tmp_path, remote):
    content = (remote / "0/0 é.wav").read_bytes()
    fsspec.filesystem("memory").pipe({"/bucket/x/bad.wav": b"no audio" * 9, "/bucket/x/0/0 é.wav": content})
    names = ["0/0 é.wav", "0/0 é.wav", "bad.wav", "not there.wav?token=secret"]
    source = write_list(tmp_path / "list.csv", [f"memory://bucket/x/{name}" for name in names])
    report = convert_wav(source, tmp_path / "out")
    assert targets(tmp_path) == {"out/0/0 é.npy"}
    failed = (tmp_path / "out/failed.csv").read_text()
    assert len(report.failed) == 3 and "secret" not in failed
    for words in ("there is no such file", "cannot be read as audio", "has the name of another"):
        assert words in failed


def test_names_do_not_lead_out_of_the_folder(tmp_path, remote):
    names = [f"memory://bucket/x/{name}" for name in files_in(remote)]
    source = write_list(tmp_path / "list.csv", [*names, "memory://bucket/x/%2e%2e/%2e%2e/%2e%2e/%2e%2e/up.wav"])
    convert_wav(source, tmp_path / "deep/out")
    assert all(name.startswith("deep/out/") for name in targets(tmp_path))


def test_a_file_that_is_too_large_is_not_kept(monkeypatch, remote):
    monkeypatch.setattr(addresses, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="which are not read from an address"):
        Address("memory://bucket/x/0/0 é.wav").read()


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ([], FileError, "the list is empty"),
        (["memory://a/b.wav", "/home/me/c.wav"], FileError, "row 3: '/home/me/c.wav' is no address"),
        (["unheard-of://a/b.wav"], UserError, "unheard-of:// is no protocol that fsspec knows"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, rows, error, words):
    with pytest.raises(error, match=words):
        convert_wav(write_list(tmp_path / "list.csv", rows), tmp_path / "out")


def test_without_fsspec_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 'm2d-audio\[remote\]'"):
        convert_wav(write_list(tmp_path / "list.csv", ["s3://a/b.wav"]), tmp_path / "out")


def test_what_may_be_secret_is_not_shown():
    assert public_name("https://me:password@host.org/a/b.wav?signature=1#x") == "https://host.org/a/b.wav"
