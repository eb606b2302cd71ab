"""Lock files: held by one process at a time, freed by its end, and never written through links."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m2d.utils.errors import UserError
from m2d.utils.own_files import lock
from m2d.utils.own_files.lock import LockedError, hold_lock, locked

HOLD = """
import sys
from pathlib import Path
from m2d.utils.own_files.lock import hold_lock

held = hold_lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run.lock"


def holder_of(path: Path) -> subprocess.Popen:
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_second_process_is_refused_until_the_first_ends(path):
    with holder_of(path) as other:
        with pytest.raises(LockedError) as raised:
            hold_lock(path)
        assert re.fullmatch(rf"process {other.pid} on .+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d", raised.value.holder)
        other.kill()
    with hold_lock(path):
        assert path.read_text().startswith(f"process {os.getpid()} on ")


def test_a_block_removes_its_lock(path):
    with locked(path):
        assert path.exists()
    assert not path.exists()
    with pytest.raises(KeyError), locked(path):
        raise KeyError
    assert not path.exists()


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "folder", "text"])
def test_what_is_no_lock_is_left_alone(path, kind):
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    {
        "link": lambda: path.symlink_to(victim),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "hard link": lambda: path.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "text": lambda: path.write_bytes(b"my notes on locks"),
    }[kind]()
    with pytest.raises(UserError, match="another thing than a file of this program|no lock file of this program"):
        hold_lock(path)
    assert victim.read_bytes() == b"precious" and not path.with_name("nowhere").exists()
    assert kind != "text" or path.read_bytes() == b"my notes on locks"


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(OSError):
        hold_lock(tmp_path / "none/run.lock")


def test_a_lock_file_that_was_removed_meanwhile_is_not_held(path, monkeypatch):
    """Its holder removes it between our opening it and locking it: a third process would hold the new file."""
    with locked(path):
        usual = lock.open_own

        def open_then_lose(name):
            monkeypatch.setattr(lock, "open_own", usual)
            file = usual(name)
            path.unlink()
            return file

        monkeypatch.setattr(lock, "open_own", open_then_lose)
        with hold_lock(path) as held:
            assert os.path.samestat(os.fstat(held.fileno()), path.stat())
