"""Archives at addresses are converted as those on the disk are: from a web server on loopback, and fsspec's memory."""

import logging
import zipfile
from pathlib import Path

import fsspec
import pytest
from archives import files_in, write_parquet, write_tar, write_zip
from audio_files import write
from web_server import WebServer, content, ranged

from m2d.cli.convert import main as convert
from m2d.cli.pack import main as pack
from m2d.utils import remote

pytestmark = pytest.mark.usefixtures("block_cache")


@pytest.fixture
def server():
    started = WebServer()
    yield started
    started.close()


def archives_of(folder: Path, numbers: range = range(5)) -> dict[str, bytes]:
    """The same sounds as a tar, a zip with compression and without, and a parquet file."""
    for i in numbers:
        write(folder / f"sounds/{i % 2}/{i}.wav", seed=i)
    files = files_in(folder / "sounds")
    write_tar(folder / "x.tar", files)
    write_zip(folder / "x.zip", files)
    write_zip(folder / "stored.zip", files, zipfile.ZIP_STORED)
    write_parquet(folder / "x.parquet", list(files.items()))
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_archive_on_the_web_gives_what_it_gives_on_the_disk(tmp_path, server):
    for name, body in archives_of(tmp_path / "local").items():
        server.answers[f"/{name}?key=1"] = ranged(body)
        out = tmp_path / f"out-{name}"
        assert convert([f"{server.address}/{name}?key=1", str(out), "--workers", "2"]) == 0
        assert convert([str(tmp_path / "local" / name), str(tmp_path / f"expected-{name}"), "--workers", "1"]) == 0
        assert files_in(out) == files_in(tmp_path / f"expected-{name}") and len(files_in(out)) == 5
    assert all(span for path, span in server.asked if path.startswith("/x.tar") and span is not None)


@pytest.mark.parametrize(("program", "kind"), [(convert, "pattern"), (pack, "list")])
def test_several_give_the_pack_of_those_on_the_disk(tmp_path, program, kind):
    files = fsspec.filesystem("memory")
    for k in range(3):
        body = archives_of(tmp_path / f"{k}", range(k, k + 3))["x.tar"]
        files.pipe(f"/bucket/{k}.tar", body)
        (tmp_path / "shards").mkdir(exist_ok=True)
        (tmp_path / f"shards/{k}.tar").write_bytes(body)
    (tmp_path / "list.txt").write_text("".join(f"memory://bucket/{k}.tar\n" for k in range(3)))
    source = "memory://bucket/*.tar" if kind == "pattern" else str(tmp_path / "list.txt")
    flag = "--pack" if program is convert else "--out"
    assert program([source, flag, str(tmp_path / "far.pack")]) == 0
    assert program([str(tmp_path / "shards/*.tar"), flag, str(tmp_path / "near.pack")]) == 0
    assert files_in(tmp_path / "far.pack") == files_in(tmp_path / "near.pack")


def test_what_cannot_be_used_is_one_line_without_secrets(tmp_path, server, caplog):
    bodies = archives_of(tmp_path / "local")
    server.answers |= {"/no-ranges.tar": content(bodies["x.tar"]), "/none.parquet": ranged(b"nothing")}
    for name, words in {
        "x.tar?key=secret": "there is no such file",
        "none.parquet": "no parquet file, or damaged",
        "no-ranges.tar": "cannot be fetched",
        "folder/?key=secret": "only archives (.tar, .zip, .parquet) are read",
    }.items():
        caplog.clear()
        assert convert([f"{server.address}/{name}", str(tmp_path / "out")]) == 2
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert words in record.getMessage() and server.address in record.getMessage()
        assert "secret" not in caplog.text and "\n" not in record.getMessage()
    caplog.clear()
    assert convert(["memory://bucket/*.tar", str(tmp_path / "out")]) == 2
    assert "there is no archive (.tar, .zip, .parquet) that memory://bucket/*.tar matches" in caplog.text


def test_damaged_members_are_named_without_secrets(tmp_path, server):
    files = {"good.wav": write(tmp_path / "good.wav").read_bytes(), "bad.wav": b"no sound"}
    server.answers["/x.tar?key=secret"] = ranged(write_tar(tmp_path / "x.tar", files).read_bytes()[:-600])
    assert convert([f"{server.address}/x.tar?key=secret", str(tmp_path / "out")]) == 1
    failed = (tmp_path / "out/failed.csv").read_text()
    assert f"{server.address}/x.tar: bad.wav" in failed and "secret" not in failed
    assert set(files_in(tmp_path / "out")) == {"good.npy", "failed.csv"}


@pytest.mark.parametrize(("name", "workers"), [("x.tar", "2"), ("x.zip", "1"), ("x.parquet", "2")])
def test_a_network_that_fails_stops_the_run_which_continues(tmp_path, server, caplog, name, workers, monkeypatch):
    monkeypatch.setattr(remote, "_LEAST_BLOCKS", 4)
    monkeypatch.setenv("M2D_CACHE_GB", "0.00002")  # less than the archive has, so that its middle is fetched again
    body, out = archives_of(tmp_path / "local", range(12))[name], tmp_path / "out"
    command = [f"{server.address}/{name}", str(out), "--workers", workers]
    whole = ranged(body)

    def failing(request):
        begin = int((request.headers.get("Range") or "bytes=0").removeprefix("bytes=").split("-")[0])
        whole(request) if not out.exists() or not 0.3 < begin / len(body) < 0.7 else request.send_error(503)

    server.answers[f"/{name}"] = failing
    assert convert(command) == 1
    assert f"{server.address}/{name} cannot be fetched (" in caplog.text and "503" in caplog.text
    assert not (out / "failed.csv").exists()
    server.answers[f"/{name}"] = whole
    assert convert(command) == 0 and len(files_in(out)) == 12


def test_a_cache_that_cannot_be_written_stops_the_run(tmp_path, server, caplog, block_cache):
    server.answers["/x.tar"] = ranged(archives_of(tmp_path / "local")["x.tar"])
    block_cache.parent.mkdir()
    block_cache.write_text("a file in its place")
    assert convert([f"{server.address}/x.tar", str(tmp_path / "out")]) == 2
    assert "the cache cannot be used" in caplog.text and "M2D_CACHE" in caplog.text
