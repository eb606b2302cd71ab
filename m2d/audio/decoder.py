"""Decoding a file in stretches: here, or in a process of its own. Free of torch, so that such a process starts at once.

Threads that decode share the interpreter's lock with the thread that feeds a GPU; processes do not. And a decoder that crashes
costs the file alone.
"""

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar, cast

import numpy as np

from ..utils.malloc import OWN_LIMITS, keep_freed_memory
from ..utils.names import shown
from ..utils.program import open_closed_streams
from .decode import joined, open_audio

logger = logging.getLogger("m2d")

Item = TypeVar("Item")
#: Makes of a file's stretches, float32 `[samples]`, what is wanted of them.
Cut: TypeAlias = Callable[[Iterator[np.ndarray]], Iterator[Item]]

# Samples that are decoded at a time.
_STRETCH = 1 << 18
# What a process writes before it waits for its reader: a clip of 10 s at 16 kHz. Else it is read in ten goes.
_PIPE_BYTES = 1 << 20
# A process's first line of its own: what is printed while Python starts comes before it.
_READY = b"ready to decode\n"


@dataclass(frozen=True)
class FileEnd:
    """A file was read to its end. `warnings` and `seconds_left_out` are those of `AudioStream`."""

    warnings: list[str]
    seconds_left_out: float


def decode_file(path: Path, sample_rate: int, cut: Cut[Item]) -> Iterator[Item | FileEnd]:
    """What `cut` makes of a file's stretches, mono at `sample_rate` in Hz; then its end.

    Raises:
        As `open_audio` and iterating over it, and what `cut` raises.
    """
    with open_audio(path, sample_rate) as stream:
        yield from cut(_stretches(stream))
    yield FileEnd(stream.warnings, stream.seconds_left_out)


def _stretches(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks joined to stretches of `_STRETCH` samples or more, except the last one."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= _STRETCH:
            yield joined(waiting)
            waiting = []
    if waiting:
        yield joined(waiting)


class DecoderProcess:
    """`decode_file` in a process of its own: one file at a time. A file that ends the process costs that file alone.

    The process ends with this one, however this one ends. Where it has ended and cannot be started again, this one decodes.

    Args:
        sample_rate: of the waveforms, in Hz.
        cut: as for `decode_file`; it is pickled, and so is what it gives.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, sample_rate: int, cut: Cut[Any]):
        self._work = sample_rate, cut
        self._can_start = True
        self._start()

    def wait(self) -> None:
        """Wait until the process has started.

        Raises:
            ChildProcessError: it has ended.
        """
        with suppress(OSError, ValueError):  # the pipe is closed
            for line in cast(IO, self._process.stdout):
                if line == _READY:
                    return
        raise self._ended()

    def decode(self, path: Path) -> Iterator[Any]:
        """As `decode_file`.

        Raises:
            ChildProcessError: the process ended.
        """
        if self._process.poll() is not None and not self._start_again():
            yield from decode_file(path, *self._work)
            return
        done = False
        try:
            self._send(path)
            while not done:
                item = self._receive()
                done = isinstance(item, FileEnd | Exception)
                if isinstance(item, Exception):
                    raise item
                yield item
        except ChildProcessError as error:
            raise ChildProcessError(f"{shown(path)} cannot be decoded: {error}") from None
        finally:
            if not done:
                self.stop()

    def stop(self) -> None:
        """End the process; another thread may be decoding by it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                cast(IO, pipe).close()

    def _start_again(self) -> bool:
        """Whether it could be started; after a failure that is not tried any more."""
        if self._can_start:
            try:
                self._start()
                self.wait()
            except OSError as error:
                self._can_start = False
                logger.warning("decoding in a thread: %s", error)
        return self._can_start

    def _start(self) -> None:
        # Modules and the encoding of names are those of this process; of itself, it would look for modules in the working folder
        # first. Numpy would start a thread a core, which decoding never uses.
        program = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; from {__name__} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # which Ctrl-C is not sent to: this process stops it
            env={**os.environ, "PYTHONUTF8": str(sys.flags.utf8_mode), "OPENBLAS_NUM_THREADS": "1"},
        )
        with suppress(ImportError, AttributeError, OSError):  # Linux has it, up to a limit
            import fcntl

            fcntl.fcntl(cast(IO, self._process.stdout), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._send(self._work)

    def _send(self, message: object) -> None:
        try:
            _write(message, cast(IO, self._process.stdin))
        except (OSError, ValueError):  # ValueError: the pipe is closed
            raise self._ended() from None

    def _receive(self) -> Any:
        try:
            return pickle.load(cast(IO, self._process.stdout))
        except (OSError, ValueError, EOFError, pickle.UnpicklingError):
            raise self._ended() from None

    def _ended(self) -> ChildProcessError:
        self.stop()
        status = self._process.returncode
        how = f"with status {status}" if status >= 0 else f"by signal {-status} ({signal.strsignal(-status)})"
        return ChildProcessError(f"the decoding process ended {how}")


def serve() -> None:
    """The process's work: decode the files that come, until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as batch systems send it to all processes of a job
    open_closed_streams()
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    keep_freed_memory(*OWN_LIMITS)
    with suppress(BrokenPipeError, EOFError):
        work = pickle.load(requests)
        replies.write(b"\n" + _READY)
        replies.flush()
        while True:
            path = pickle.load(requests)
            try:
                for item in decode_file(path, *work):
                    _write(item, replies)
            except BrokenPipeError:
                raise
            except Exception as error:  # of whatever kind, it costs this file alone
                _write(_sendable(error), replies)
    os._exit(0)  # without an attempt to write what no one reads


def _write(message: object, pipe: IO) -> None:
    pickle.dump(message, pipe, protocol=5)
    pipe.flush()


def _sendable(error: Exception) -> Exception:
    """An error, as another process can read it."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} {error}")
    return error
