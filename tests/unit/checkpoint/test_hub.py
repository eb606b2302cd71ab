"""Checkpoints of the Hugging Face Hub: fetched from a loopback server, and one clear line where that cannot be."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import published_name, write_checkpoint
from hub_server import COMMIT, add_repository, refusal
from limits import small_disk
from web_server import WebServer

from m2d.checkpoint.build import is_random
from m2d.checkpoint.hugging_face import source_of
from m2d.cli.export import main

pytest.importorskip("huggingface_hub")
ROOT = Path(__file__).resolve().parents[3]
#: Prints what each address leads to: the file, the sizes and what else it tells, or the error.
PROGRAM = """
import json, sys
from m2d.checkpoint.weights import read_weights
for address in sys.argv[1:]:
    try:
        read = read_weights(address)
        print(json.dumps([str(read.path), str(read.spec), read.single_label]))
    except (OSError, ValueError) as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
REMEDY = "check the network, or HF_ENDPOINT"
BARE = f"hf:owner/bare-{published_name(size=(80, 32))}"


def read(cache, endpoint, *addresses, program=PROGRAM, **variables):
    """What a fresh process makes of each address."""
    environment = {**os.environ, "HF_HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_DOWNLOAD_TIMEOUT": "120", **variables}  # a busy machine answers late
    command = [sys.executable, "-c", program, *addresses]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("weights"), size=(80, 32))


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """An exported model."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main([str(checkpoint), str(folder), "--to", "hf"]) == 0
    return folder


@pytest.fixture(scope="module")
def server(checkpoint, folder):
    server = WebServer()
    exported = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(exported["config.json"]) | {"problem_type": "single_label_classification"}
    exported["config.json"] = json.dumps(config).encode()
    pth = checkpoint.read_bytes()
    add_repository(server, "owner/exported", exported, ("main", "v1", COMMIT))
    add_repository(server, f"owner/{published_name(size=(80, 32))}", {"README.md": b"", "weights.pth": pth})
    add_repository(server, "owner/run", {f"{published_name(size=(80, 32))}/checkpoint-{n}.pth": pth for n in (1, 2)})
    add_repository(server, f"owner/bare-{published_name(size=(80, 32))}", {"model.safetensors": exported["model.safetensors"]})
    add_repository(server, "owner/text", {"README.md": b"no weights"})
    server.answers["/owner/none/resolve/main/model.safetensors"] = refusal(401, "RepoNotFound")
    server.answers["/owner/gated/resolve/main/model.safetensors"] = refusal(403, "GatedRepo")
    server.answers["/owner/exported/resolve/v9/model.safetensors"] = refusal(404, "RevisionNotFound")
    yield server
    server.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def answers(server, cache):
    """What one process makes of many addresses."""
    addresses = {
        "exported": "hf:owner/exported",
        "revision": "hf:owner/exported@v1",
        "sizes in the name": f"hf:owner/{published_name(size=(80, 32))}",
        "weights alone": BARE,
        "file": f"hf:owner/run/{published_name(size=(80, 32))}/checkpoint-1.pth",
        "several": "hf:owner/run",
        "no weights": "hf:owner/text",
        "no repository": "hf:owner/none",
        "gated": "hf:owner/gated",
        "no revision": "hf:owner/exported@v9",
        "busy": "hf:owner/busy",
        "no address": "hf:owner",
    }
    return dict(zip(addresses, read(cache, server.address, *addresses.values()), strict=True))


@pytest.mark.parametrize("which", ["exported", "revision", "sizes in the name", "weights alone", "file"])
def test_weights_are_fetched_into_the_cache(which, answers, cache):
    assert len(answers[which]) == 3, answers[which]
    path, sizes, single = answers[which]
    assert path.startswith(str(cache)) and sizes == "m2d_vit_tiny-80x32p16x16p16k"
    assert single == (which in ("exported", "revision"))  # config.json came along


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ("several", "checkpoint-2.pth: name one, as hf:owner/name[/file][@revision]"),
        ("no weights", "holds no checkpoint"),
        ("no repository", "there is no such repository, or it is private: check the name, and set HF_TOKEN"),
        ("gated", "its owner grants access on request"),
        ("no revision", "no such revision: give a branch, a tag or a commit"),
        ("busy", "answers 404, and the cache has no model.safetensors"),
        ("no address", "expected hf:owner/name[/file][@revision]"),
    ],
)
def test_one_line_tells_what_is_wrong(which, words, answers):
    kind, message = answers[which]
    assert kind == "CheckpointError" and words in message and message.startswith("hf:owner") and "\n" not in message


def test_offline_the_cache_serves(answers, server, cache):
    asked = len(server.asked)
    addresses = "hf:owner/exported", BARE, "hf:owner/run"
    cached, alone, other = read(cache, server.address, *addresses, HF_HUB_OFFLINE="1")
    assert (cached, alone) == (answers["exported"], answers["weights alone"]) and len(server.asked) == asked
    assert "the cache has no model.safetensors: unset HF_HUB_OFFLINE to fetch it" in other[1]


def test_a_full_cache(server, tmp_path):
    with small_disk(tmp_path / "cache", 1 << 20):
        ((kind, message),) = read(tmp_path / "cache", server.address, "hf:owner/exported")
        left = [path for path in (tmp_path / "cache").rglob("*.safetensors")]
    assert kind == "OSError" and "cannot be written (No space left on device): free space, or set HF_HOME" in message
    assert not left


def test_without_a_network_one_line_says_so_at_once(tmp_path):
    """huggingface_hub repeats its requests for half a minute, with pauses, none of which may be taken."""
    no_pauses = "import time\ntime.sleep = lambda seconds: print(f'paused for {seconds} s')"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        addresses = "hf:owner/exported", "hf:owner/run/a.pth@v1"
        whole, file = read(tmp_path, endpoint, *addresses, program=no_pauses + PROGRAM)
    reason = f"{endpoint} cannot be reached, and the cache has no"
    assert whole == ["CheckpointError", f"hf:owner/exported: {reason} model.safetensors of owner/exported: {REMEDY}"]
    assert file == ["CheckpointError", f"hf:owner/run/a.pth@v1: {reason} a.pth of owner/run: {REMEDY}"]


def test_without_huggingface_hub(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["hf:owner/name", str(tmp_path / "e.pth")]) == 2
    assert "hf:owner/name needs huggingface_hub: pip install 'm2d-audio[hf]'" in caplog.text


def test_names_of_repositories_and_folders(folder):
    assert source_of("owner/name") == "hf:owner/name" and source_of("owner/name", "v1") == "hf:owner/name@v1"
    assert source_of("hf:owner/name@v2") == "hf:owner/name@v2"
    assert source_of(folder) == str(folder)
    assert is_random("m2d_vit_tiny-80x32p16x16-random") and not is_random("hf:owner/m2d_vit_tiny-80x32p16x16-random")


def test_retries_of_huggingface_hub_are_not_shown():
    """In a fresh process: the library sets its own level when it is imported, which may be late."""
    program = """
import logging
from m2d.checkpoint.hugging_face import _explained
with _explained("hf:owner/name", "model.safetensors"):
    from huggingface_hub import hf_hub_download
    assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
assert logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
