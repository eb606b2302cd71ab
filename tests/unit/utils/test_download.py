"""Downloads from a server on loopback that breaks off, stalls, redirects, and sends something else."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from web_server import WebServer, breaking, content, dripping, dripping_headers, redirect, trust

from m2d.utils import download as module
from m2d.utils.download import DownloadError, download
from m2d.utils.errors import UserError

BODY = os.urandom(300_000)
FETCH = """
import sys
from pathlib import Path
from m2d.utils.download import download

download(sys.argv[1], Path(sys.argv[2]), lambda part: None, 1e6)
"""


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def server(ca, tmp_path, monkeypatch):
    trust(ca, tmp_path, monkeypatch)
    running = WebServer(ca)
    yield running
    running.close()


@pytest.fixture
def plain():
    running = WebServer()
    yield running
    running.close()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "cache/file.bin"


def is_whole(part: Path) -> None:
    if part.read_bytes() != BODY:
        raise ValueError(f"{part} is not the file")


def get(server: WebServer, path: Path, check=is_whole, max_bytes=1e6, stall_seconds=20.0) -> None:
    download(f"{server.address}/file", path, check, max_bytes, stall_seconds)


def files(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path.parent)) for found in path.parent.rglob("*") if found.is_file())


def test_a_file_is_fetched_once_with_its_checksum(server, path):
    server.answers["/file"] = content(BODY)
    get(server, path)
    get(server, path)
    assert path.read_bytes() == BODY and len(server.asked) == 1
    assert files(path) == ["file.bin", "file.bin.sha256"]
    assert path.with_name("file.bin.sha256").read_text() == f"{hashlib.sha256(BODY).hexdigest()}  file.bin\n"


def test_a_redirect_within_https_is_followed(server, path):
    server.answers |= {"/file": redirect("/moved"), "/moved": content(BODY, length=-1)}
    get(server, path)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("to", ["http", "ftp://127.0.0.1/file", "file:///etc/passwd"])
def test_https_stays_https(server, plain, path, to):
    plain.answers["/file"] = content(BODY)
    to = f"{plain.address}/file" if to == "http" else to
    server.answers["/file"] = redirect(to)
    with pytest.raises(DownloadError, match="only https is followed|is not allowed"):
        get(server, path)
    assert not plain.asked and files(path) == []


def test_http_leads_to_https_but_not_to_files(server, plain, path):
    plain.answers["/file"] = redirect("file:///etc/passwd")
    with pytest.raises(DownloadError, match="is not allowed"):
        get(plain, path)
    server.answers["/file"] = content(BODY)
    plain.answers["/file"] = redirect(f"{server.address}/file")
    get(plain, path)
    assert path.read_bytes() == BODY


def test_an_unknown_certificate_is_refused(path, tmp_path, monkeypatch):
    trust(trustme.CA(), tmp_path, monkeypatch)
    server = WebServer(trustme.CA())
    with pytest.raises(DownloadError, match="(?i)certificate"):
        get(server, path)
    server.close()


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><form>Log in</form>", BODY[:1000], b""])
def test_something_else_is_not_kept(server, path, body):
    server.answers["/file"] = content(body, length=-1)
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"/file: file.bin is not the file \(nothing of it is kept\)"):
            get(server, path)
    assert files(path) == [] and len(server.asked) == 2


def test_a_broken_connection_is_resumed(server, path):
    server.answers["/file"] = breaking(BODY, 120_000)
    get(server, path)
    assert path.read_bytes() == BODY
    assert [span for _, span in server.asked] == [None, "bytes=120000-", "bytes=240000-"]


def test_a_later_call_resumes(server, path):
    server.answers["/file"] = breaking(BODY, 80_000)
    with pytest.raises(DownloadError, match="broke off after 240000 of 300000 bytes.*the same command resumes"):
        get(server, path)
    assert not path.exists() and (path.parent / ".download/file.bin").stat().st_size == 240_000
    server.answers["/file"] = content(BODY)
    get(server, path)
    assert server.asked[-1][1] == "bytes=240000-" and path.read_bytes() == BODY
    assert files(path) == ["file.bin", "file.bin.sha256"]


def test_parts_of_another_file_are_not_put_together(server, path):
    server.answers["/file"] = breaking(bytes(300_000), 80_000, tag='"old"')
    with pytest.raises(DownloadError):
        get(server, path)
    server.answers["/file"] = content(BODY, tag='"new"')
    get(server, path)
    assert path.read_bytes() == BODY


def test_a_server_that_breaks_off_at_once(server, path):
    server.answers["/file"] = breaking(BODY, 0)
    with pytest.raises(DownloadError, match="broke off after 0 of 300000 bytes.*give a local file"):
        get(server, path)
    assert len(server.asked) == 1 and files(path) == []


@pytest.mark.parametrize("answer", [dripping(0.05), dripping(5), dripping_headers(0.05)])
def test_a_slow_server_has_an_end(server, path, answer, monkeypatch):
    monkeypatch.setattr(module, "_ATTEMPTS", 1)
    server.answers["/file"] = answer
    with pytest.raises(DownloadError, match="within 0 s|timed out|no answer"):
        get(server, path, stall_seconds=0.4)
    assert not path.exists()


@pytest.mark.parametrize("length", [None, -1])
def test_a_file_larger_than_expected_is_refused(server, path, length):
    server.answers["/file"] = content(BODY, length=length)
    with pytest.raises(DownloadError, match="than the 0.1 MB expected"):
        get(server, path, max_bytes=1e5)
    assert files(path) == []


def test_addresses_that_lead_nowhere(server, path):
    with pytest.raises(DownloadError, match=r"could not be fetched \(Not Found\); give a local file"):
        get(server, path)
    for address in ("ftp://127.0.0.1/file", "file:///etc/passwd"):
        with pytest.raises(DownloadError, match="only https and http addresses"):
            download(address, path, is_whole, 1e6)
    server.close()
    with pytest.raises(DownloadError, match="could not be fetched"):
        get(server, path)
    assert files(path) == []


def test_several_at_once_fetch_it_once(server, path):
    server.answers["/file"] = content(BODY)
    processes = [subprocess.Popen([sys.executable, "-c", FETCH, f"{server.address}/file", path]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert len(server.asked) == 1 and path.read_bytes() == BODY and files(path) == ["file.bin", "file.bin.sha256"]


def test_a_link_at_the_place_of_a_part_is_not_followed(server, path, tmp_path):
    server.answers["/file"] = content(BODY)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (path.parent / ".download").mkdir(parents=True)
    (path.parent / ".download/file.bin").symlink_to(victim)
    with pytest.raises(UserError, match="is there as a link"):
        get(server, path)
    (path.parent / ".download/file.bin").unlink()
    os.link(victim, path.parent / ".download/file.bin")
    with pytest.raises(UserError, match="is there as a link"):
        get(server, path)
    assert victim.read_bytes() == b"precious"
