"""A conversion that is stopped: by a full disk, a kill, Ctrl-C; and one that goes on."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from audio_files import targets, temporary_files, write

import wav_to_lms
from m2d.audio import convert
from wav_to_lms import convert_wav

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def src(tmp_path) -> Path:
    for name in ("b.wav", "a.wav", "sub/c.wav"):
        write(tmp_path / "src" / name)
    return tmp_path / "src"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_recognised(src, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/.{socket.gethostname()}-{os.getpid()}.lms.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"a\.npy cannot be written: No space left on device\. Stopped"):
        convert_wav(src, tmp_path / "out", workers=1)
    assert targets(tmp_path / "out") == set()
    assert not temporary_files(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_all_workers_at_once(tmp_path, monkeypatch, workers):
    for number in range(200):
        write(tmp_path / f"src/{number:03}.wav", 320)

    def fill_up(target: str, lms: np.ndarray) -> None:
        with open(tmp_path / "tries", "a") as tries:
            tries.write("x")
        if len(targets(tmp_path / "out")) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        convert.npy_sink(target, lms)

    monkeypatch.setattr(wav_to_lms, "npy_sink", fill_up)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device\. Stopped"):
        convert_wav(tmp_path / "src", tmp_path / "out", workers=workers)
    monkeypatch.undo()
    assert 3 <= len(targets(tmp_path / "out")) <= 3 + workers
    assert (tmp_path / "tries").stat().st_size <= 3 + 2 * workers
    assert len(convert_wav(tmp_path / "src", tmp_path / "out", workers=1).converted) >= 195


def test_temporary_files_of_dead_processes_are_removed_and_of_living_ones_kept(src, tmp_path):
    host = socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = tmp_path / "out/other"
    folder.mkdir(parents=True)
    names = [f"{host}-{dead.pid}", f"{host}-{os.getpid()}", f"elsewhere-{dead.pid}", "elsewhere-1"]
    ours_dead, ours_living, theirs_new, theirs_old = (folder / f".{name}.lms.tmp" for name in names)
    for path in (ours_dead, ours_living, theirs_new, theirs_old):
        path.write_bytes(b"torn")
    os.utime(theirs_old, (time.time() - 100000,) * 2)
    convert_wav(src, tmp_path / "out", workers=1)
    assert set(temporary_files(tmp_path)) == {ours_living, theirs_new}


def test_a_killed_process_that_nobody_waits_for_is_not_running():
    with subprocess.Popen(["sleep", "60"]) as killed:
        assert convert.is_running(killed.pid)
        killed.kill()
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        assert not convert.is_running(killed.pid)
    assert not convert.is_running(killed.pid)


def start(src: Path, out: Path, **options) -> subprocess.Popen:
    """A run over 2,000 clips that has written its first ones."""
    first = write(src / "first.wav", 160000)
    for number in range(1999):
        os.link(first, src / f"{number:04}.wav")
    command = [sys.executable, str(ROOT / "wav_to_lms.py"), str(src), str(out), "--workers", "2"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
    deadline = time.monotonic() + 30
    while len(targets(out)) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    return running


def assert_whole_and_continued(src: Path, out: Path) -> None:
    done = targets(out)
    assert 3 <= len(done) < 2000
    assert all(np.load(out / name).shape == (1, 80, 1001) for name in done)
    left = [path for path in src.iterdir() if path.with_suffix(".npy").name not in done]
    for path in left[5:]:
        path.unlink()
    report = convert_wav(src, out, workers=2)
    assert (report.existing, len(report.converted)) == (len(done), len(left[:5]))
    assert not temporary_files(out)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads process tables")
def test_a_killed_run_leaves_whole_files_and_no_workers_and_goes_on(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    running = start(src, out)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers) == 2
    assert not any(Path(f"/proc/{pid}/exe").exists() for pid in workers)
    assert_whole_and_continued(src, out)


def test_ctrl_c_ends_with_a_word_and_exit_130(tmp_path):
    src, out = tmp_path / "src", tmp_path / "out"
    running = start(src, out, start_new_session=True)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130
    assert "interrupted: the files written are whole" in said
    assert "Traceback" not in said
    assert not temporary_files(out)
    assert_whole_and_continued(src, out)


def test_a_killed_worker_is_reported_instead_of_waiting_for_ever(src, tmp_path, monkeypatch):
    def die(path: str, rate: int) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(convert, "load_audio", die)
    with pytest.raises(RuntimeError, match="a worker process died"):
        convert_wav(src, tmp_path / "out", workers=2)
