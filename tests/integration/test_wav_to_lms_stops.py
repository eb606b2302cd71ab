"""A conversion that is stopped: by a full disk, a kill, Ctrl-C; and one that continues."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from audio_files import targets, temporary_files, write
from limits import file_size_limit

from m2d.audio import convert
from m2d.data import convert_folder
from wav_to_lms import convert_wav

ROOT = Path(__file__).resolve().parents[2]


def test_a_full_disk_is_recognised(src, tmp_path):
    """A limit on file size acts as a full disk."""
    with file_size_limit(5000):
        report = convert_wav(src, tmp_path / "out", workers=1)
    assert "a.npy cannot be written: File too large" in report.failed["a.wav"]
    assert targets(tmp_path / "out") == set() and not temporary_files(tmp_path)


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

    monkeypatch.setattr(convert_folder, "npy_sink", fill_up)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device\. Stopped"):
        convert_wav(tmp_path / "src", tmp_path / "out", workers=workers)
    monkeypatch.undo()
    assert 3 <= len(targets(tmp_path / "out")) <= 3 + workers
    assert (tmp_path / "tries").stat().st_size <= 3 + 2 * workers
    assert len(convert_wav(tmp_path / "src", tmp_path / "out", workers=1).converted) >= 195


def test_temporary_files_that_a_killed_run_left_are_removed_after_a_day(src, tmp_path):
    folder = tmp_path / "out/other"
    folder.mkdir(parents=True)
    old, new, foreign = folder / f".a.npy.{1:016x}.m2d-tmp", folder / f".a.npy.{2:016x}.m2d-tmp", folder / ".notes.lms.tmp"
    for path in (old, new, foreign):
        path.write_bytes(b"torn")
        if path != new:
            os.utime(path, (time.time() - 100000,) * 2)
    convert_wav(src, tmp_path / "out", workers=1)
    assert not old.exists() and new.exists() and foreign.exists()


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
    # A shell starts its background jobs with SIGINT ignored, and what they start inherits that.
    running = start(src, out, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=20)
    assert running.returncode == 130, said
    assert "interrupted: the files written are whole" in said
    assert "Traceback" not in said
    assert not temporary_files(out)
    assert_whole_and_continued(src, out)


def test_a_killed_worker_is_reported_instead_of_waiting_for_ever(src, tmp_path, monkeypatch):
    def die(path: str, rate: int) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(convert, "read_audio", die)
    with pytest.raises(RuntimeError, match="a worker process died"):
        convert_wav(src, tmp_path / "out", workers=2)
