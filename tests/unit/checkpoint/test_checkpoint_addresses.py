"""Checkpoints at addresses: fetched once, resumed, unpacked, refused."""

import io
import logging
import zipfile

import pytest
import torch
import trustme
from checkpoint_files import NAME
from web_server import WebServer, breaking, content, redirect, trust

from m2d.checkpoint.weights import (
    CheckpointError,
    read_weights,
    resolve,
)


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def server(ca, monkeypatch, tmp_path):
    """An https server on loopback, and an empty cache."""
    monkeypatch.setenv("M2D_CACHE", str(tmp_path / "cache"))
    trust(ca, tmp_path, monkeypatch)
    running = WebServer(ca)
    yield running
    running.close()


PLACE = f"/releases/{NAME}/checkpoint-300.pth"


def cached(tmp_path):
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_address_is_fetched_once_and_keeps_its_names(model, whole_file, server, caplog):
    body = whole_file.read_bytes()
    server.answers[PLACE] = content(body)
    with caplog.at_level(logging.INFO, "m2d"):
        weights = read_weights(server.address + PLACE)
    assert weights.spec.model == "m2d_vit_tiny" and weights.path.read_bytes() == body
    assert f"({len(body) / 1e6:.1f} MB)" in caplog.text
    assert resolve(server.address + PLACE) == weights.path and len(server.asked) == 1
    assert resolve(weights.path.parent) == weights.path  # its checksum beside it is no second checkpoint


def test_a_broken_connection_has_no_name_and_is_resumed(whole_file, server, tmp_path):
    body = whole_file.read_bytes()
    server.answers[PLACE] = breaking(body, 1000)
    with pytest.raises(CheckpointError, match=f"broke off after 3000 of {len(body)} bytes"):
        resolve(server.address + PLACE)
    assert not list((tmp_path / "cache").glob("*/*/checkpoint-300.pth"))
    server.answers[PLACE] = content(body)
    assert resolve(server.address + PLACE).read_bytes() == body and server.asked[-1][1] == "bytes=3000-"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("login page", "is a web page, not a checkpoint"),
        ("short", "is truncated"),
        ("bad zip", "is damaged"),
        ("flipped", "is damaged"),
        ("two", "is an archive of 2 checkpoints"),
        ("empty", "is empty"),
        ("pickle", "runs "),
    ],
)
def test_what_is_refused_is_not_cached(whole_file, server, tmp_path, kind, words):
    body = bytearray(whole_file.read_bytes())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        for name in ("a.pth", "b.pth")[: 1 + (kind == "two")]:
            target.writestr(f"{NAME}/{name}", bytes(body))
    asking = io.BytesIO()
    torch.save({"model": print}, asking)
    bad = bytearray(archive.getvalue())
    bad[len(bad) // 2] ^= 1
    body[len(body) // 2] ^= 1
    bodies = {"login page": b"<!DOCTYPE html><title>Log in</title>", "short": whole_file.read_bytes()[:-2000], "bad zip": bad}
    bodies |= {"flipped": body, "two": archive.getvalue(), "empty": b"", "pickle": asking.getvalue()}
    server.answers[PLACE] = content(bytes(bodies[kind]), length=-1)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=words) as raised:
            resolve(server.address + PLACE)
    assert len(server.asked) == 2 and cached(tmp_path) == [] and str(tmp_path) not in str(raised.value)


def test_addresses_that_cannot_be_fetched(server):
    with pytest.raises(CheckpointError, match=r"could not be fetched \(Not Found\); give a local file"):
        resolve(server.address + PLACE)
    with pytest.raises(CheckpointError, match="only https addresses"):
        resolve("http://example.org/a.pth")
    server.answers[PLACE] = redirect("http://127.0.0.1:1/a.pth")
    with pytest.raises(CheckpointError, match="only https is followed"):
        resolve(server.address + PLACE)


def test_a_released_archive_is_unpacked(whole_file, server):
    """The published addresses are zip archives of a folder with one checkpoint."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr(f"{NAME}/weights_ep1.pth", whole_file.read_bytes())
        target.writestr(f"{NAME}/readme.txt", "x")
        target.writestr(f"__MACOSX/{NAME}/._weights_ep1.pth", "x")
    place = f"/releases/v0.1.0/{NAME}.zip"
    server.answers[place] = content(archive.getvalue())
    path = resolve(server.address + place)
    assert path.parent.name == NAME and path.name == "weights_ep1.pth" and read_weights(path).spec is not None
    assert resolve(server.address + place) == path and len(server.asked) == 1
