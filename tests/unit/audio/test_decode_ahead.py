"""Files decoded ahead: in order, with little in memory, by threads and by processes; what ends a process costs one file."""

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import soundfile
from recordings import melody

from m2d.audio import decoder
from m2d.audio.ahead import decode_ahead
from m2d.audio.decoder import DecoderProcess, FileEnd

# Seconds until a thread or process that never comes fails a test.
TIMEOUT = 60


def test_decoding_stays_few_stretches_ahead(tmp_path, monkeypatch):
    """However long a file is, a thread waits until its last stretch is taken."""
    monkeypatch.setattr(decoder, "_STRETCH", 1000)
    read, opened = [], decoder.open_audio

    class Counting:
        def __init__(self, path, rate):
            self.stream, self.warnings = opened(path, rate), []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.__exit__()

        def __iter__(self):
            for i in range(50):
                read.append(i)
                yield np.zeros(1000, np.float32)

    monkeypatch.setattr(decoder, "open_audio", Counting)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", melody(0.1, 16000), 16000)
    decoded = decode_ahead([tmp_path / f"{i}.wav" for i in range(3)], 16000, workers=3)
    for count, _ in enumerate(next(decoded), 1):
        assert len(read) <= 3 * 3 + count
    decoded.close()


def test_a_thread_decodes_the_next_file_before_a_short_one_is_taken(tmp_path, monkeypatch):
    opened, reached = decoder.open_audio, threading.Event()

    def open_audio(path, rate):
        if path.name == "1.wav":
            reached.set()
        return opened(path, rate)

    monkeypatch.setattr(decoder, "open_audio", open_audio)
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", melody(0.1, 16000), 16000)
    decoded = decode_ahead([tmp_path / f"{i}.wav" for i in range(3)], 16000, workers=1)
    first = next(decoded)
    assert reached.wait(TIMEOUT)
    assert [len(stretch) for clip in chain([first], decoded) for stretch in clip] == [1600] * 3


def test_an_error_while_a_file_is_cut_comes_in_its_place(tmp_path):
    def cut(stretches):
        for stretch in stretches:
            if len(stretch) == 3200:
                raise MemoryError("no memory to lock")
            yield len(stretch)

    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", np.zeros(1600 * (i + 1)), 16000)
    clips = decode_ahead([tmp_path / f"{i}.wav" for i in range(3)], 16000, 2, cut)
    assert [str(item) for clip in clips for item in clip] == ["1600", "no memory to lock", "4800"]


def summed(stretches):
    """Of each stretch its length and sum; what some lengths do to a process, no other test sees."""
    for stretch in stretches:
        if len(stretch) == 1601:
            os.kill(os.getpid(), signal.SIGSEGV)
        if len(stretch) == 1602:
            raise OwnError("unlike", "others")
        if len(stretch) == 1603:
            os.kill(os.getpid(), signal.SIGRTMIN + 1)
        print("noise on the output", flush=True)
        yield len(stretch), float(np.sum(stretch, dtype=np.float64))


class OwnError(Exception):
    """Cannot be read back from a pickle."""

    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


@pytest.fixture
def files(tmp_path):
    """Good ones, a long one, one cut short, one that is no audio, one that is missing."""
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", melody(1 + i / 8, 16000), 16000)
    soundfile.write(tmp_path / "4 long.flac", melody(70, 16000), 16000)
    whole = (tmp_path / "0.wav").read_bytes()
    (tmp_path / "5 cut.wav").write_bytes(whole[: len(whole) // 4])
    (tmp_path / "6.wav").write_bytes(b"no audio" * 100)
    return [*sorted(tmp_path.iterdir()), tmp_path / "7 missing.wav"]


def decoded(paths, in_processes, workers=2, cut=summed):
    """Items of each file, errors as words, and what is wrong with it."""
    clips = decode_ahead(paths, 16000, workers, cut, in_processes=in_processes)
    return [
        ([str(item) if isinstance(item, Exception) else item for item in clip], clip.warnings, clip.seconds_left_out)
        for clip in clips
    ]


def is_gone(pid):
    """Whether a process has ended, or does so now."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_processes_give_what_threads_give(files, caplog):
    expected = decoded(files, in_processes=False)
    in_threads = [record.getMessage() for record in caplog.records]
    caplog.clear()
    assert decoded(files, in_processes=True) == expected
    assert [record.getMessage() for record in caplog.records] == in_threads
    assert [len(items) for items, *_ in expected] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert expected[5][1] and "cannot be read as audio" in expected[6][0][0] and "cannot be opened" in expected[7][0][0]


def test_a_file_that_ends_its_process_costs_that_file_alone(tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(6)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.zeros((1600, 1601, 1603, 1602, 1600, 1600)[i]), 16000)
    found = [items[0] for items, *_ in decoded(paths, in_processes=True, workers=1)]
    signals = int(signal.SIGSEGV), signal.SIGRTMIN + 1  # which has no name in Python
    words = [f"{number} ({signal.strsignal(number)})" for number in signals]
    ended = [f"{paths[i]} cannot be decoded: the decoding process ended by signal {words[i - 1]}" for i in (1, 2)]
    assert found == [(1600, 0.0), *ended, "OwnError unlike others", (1600, 0.0), (1600, 0.0)]


def test_a_process_that_was_killed_between_two_files_is_started_again(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(1600), 16000)
    process = DecoderProcess(16000, summed)
    process.wait()
    for _ in range(2):
        assert list(process.decode(tmp_path / "x.wav")) == [(1600, 0.0), FileEnd([], 0.0)]
        process._process.kill()
        process._process.wait()
    process.stop()


@pytest.mark.parametrize("python", ["/nonexistent/python", "/bin/false", "/bin/true"])
def test_where_no_process_can_be_started_threads_decode(files, python, monkeypatch, caplog):
    monkeypatch.setattr(sys, "executable", python)
    found = decoded(files, in_processes=True)
    assert [record.getMessage() for record in caplog.records if "decoding in threads" in record.getMessage()]
    assert found == decoded(files, in_processes=False)


@pytest.mark.parametrize("noise", ["Using this Python", "conda: activated\n", "\x80\x05"])
def test_what_is_printed_before_a_process_has_started_is_no_reply(tmp_path, noise, monkeypatch):
    """As a sitecustomize does it: one that reads like the beginning of a reply would be waited for."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.stdout.write({noise!r})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    soundfile.write(tmp_path / "x.wav", np.zeros(1600), 16000)
    process = DecoderProcess(16000, summed)
    process.wait()
    assert list(process.decode(tmp_path / "x.wav")) == [(1600, 0.0), FileEnd([], 0.0)]
    process.stop()


def test_an_interrupt_that_reaches_a_process_is_left_to_its_parent(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(1600), 16000)
    process = DecoderProcess(16000, summed)
    process.wait()
    process._process.send_signal(signal.SIGINT)
    assert list(process.decode(tmp_path / "x.wav")) == [(1600, 0.0), FileEnd([], 0.0)]
    process.stop()


NOISY = """
import os
def cut(stretches):
    for stretch in stretches:
        os.write(2, b"noise of a library")
        yield len(stretch)
"""


def test_without_standard_streams_replies_are_as_with_them(tmp_path):
    """A process's pipes must not get the numbers of the streams, to which libraries write."""
    (tmp_path / "noisy.py").write_text(NOISY)
    soundfile.write(tmp_path / "x.wav", np.zeros(1600), 16000)
    program = f"""
import sys
sys.path[:0] = [{str(Path(decoder.__file__).parents[2])!r}, {str(tmp_path)!r}]
from pathlib import Path
from noisy import cut
from m2d.audio.decoder import DecoderProcess
process = DecoderProcess(16000, cut)
process.wait()
Path("found").write_text(str(list(process.decode(Path("x.wav")))))
process.stop()
"""
    subprocess.run(["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert (tmp_path / "found").read_text() == "[1600, FileEnd(warnings=[], seconds_left_out=0.0)]"


IN_UTF8 = """
from pathlib import Path
from m2d.audio.ahead import decode_ahead
assert [len(stretch) for clip in decode_ahead([Path("\u00e9.wav")], 16000, 1, in_processes=True) for stretch in clip] == [1600]
"""


def test_a_process_encodes_names_as_its_parent_does(tmp_path):
    soundfile.write(tmp_path / "\u00e9.wav", np.zeros(1600), 16000)
    root, ascii_names = Path(decoder.__file__).parents[2], {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-X", "utf8", "-c", IN_UTF8]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, **ascii_names, "PYTHONPATH": str(root)}, check=True)


@pytest.mark.parametrize("kind", [OSError, ChildProcessError])
def test_where_a_process_cannot_be_started_again_its_thread_decodes(tmp_path, kind, monkeypatch, caplog):
    started, start = [], DecoderProcess._start

    def start_once(self):
        if started:
            raise kind("no more processes")
        started.append(start(self))

    paths = [tmp_path / f"{i}.wav" for i in range(4)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.zeros(1601 if i == 1 else 1600), 16000)
    monkeypatch.setattr(DecoderProcess, "_start", start_once)
    found = list(map(list, decode_ahead(paths, 16000, 1, summed, in_processes=True)))
    assert "ended by signal 11" in str(found.pop(1)[0]) and found == [[(1600, 0.0)]] * 3
    assert [record.getMessage() for record in caplog.records] == ["decoding in a thread: no more processes"]


def test_processes_end_where_starting_them_is_interrupted(monkeypatch):
    started, start = [], DecoderProcess._start

    def noting(self):
        start(self)
        started.append(self._process.pid)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(DecoderProcess, "_start", noting)
    monkeypatch.setattr(DecoderProcess, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept:
        next(decode_ahead([Path("x.wav")] * 2, 16000, 2, summed, in_processes=True))
    assert kept and len(started) == 2 and all(map(is_gone, started))


def test_nothing_is_left_where_the_end_is_interrupted(tmp_path, monkeypatch):
    """By Ctrl-C that comes twice."""
    pids, interrupts, stop, threads = set(), [], DecoderProcess.stop, threading.active_count()

    def interrupted(self):
        pids.add(self._process.pid)
        if threading.current_thread() is threading.main_thread() and not interrupts:
            interrupts.append(KeyboardInterrupt())
            raise interrupts[0]
        stop(self)

    monkeypatch.setattr(DecoderProcess, "stop", interrupted)
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", melody(70, 16000), 16000)
    clips = decode_ahead(sorted(tmp_path.iterdir()), 16000, 3, summed, in_processes=True)
    next(iter(next(clips)))
    with pytest.raises(KeyboardInterrupt):
        clips.close()
    assert len(pids) >= 3 and all(map(is_gone, pids)) and threading.active_count() == threads


def test_where_no_thread_can_be_started_the_flag_is_named(monkeypatch):
    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(OSError, match="can't start new thread: lower --workers"):
        next(decode_ahead([Path("x.wav")], 16000, 1))


def test_processes_end_where_no_more_files_are_wanted(tmp_path, monkeypatch):
    started, start = [], DecoderProcess._start

    def noting(self):
        start(self)
        started.append(self._process.pid)

    monkeypatch.setattr(DecoderProcess, "_start", noting)
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", melody(70, 16000), 16000)
    clips = decode_ahead(sorted(tmp_path.iterdir()), 16000, 2, summed, in_processes=True)
    next(iter(next(clips)))
    clips.close()
    assert len(started) >= 2 and all(map(is_gone, started))


PROGRAM = """
import sys
from pathlib import Path
from m2d.audio.decoder import DecoderProcess
process = DecoderProcess(16000, iter)
process.wait()
items = process.decode(Path(sys.argv[1]))
next(items)
print(process._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ends_with_its_parent(tmp_path, end):
    """Which is killed while it has most of a file still to write."""
    soundfile.write(tmp_path / "x.flac", melody(200, 16000), 16000)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "x.flac")]
    root = Path(decoder.__file__).parents[2]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
    pid = int(parent.stdout.readline())
    parent.send_signal(end)
    _, errors = parent.communicate(timeout=TIMEOUT)
    assert is_gone(pid) and not errors


def test_a_process_starts_without_torch():
    program = "import sys, m2d.audio.decoder, m2d.audio.framing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(decoder.__file__).parents[2])
