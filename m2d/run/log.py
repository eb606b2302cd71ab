"""Run logging on rank 0: console, console.txt, log.txt, TensorBoard and other trackers."""

import errno
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..utils.atomic_file import write_text
from .tensorboard import EventFile

_MANY_RECORDS = 100_000

logger = logging.getLogger("m2d")


def start_console() -> None:
    """Log to standard output, and keep the messages for the console.txt of the run that is about to start."""
    logger.handlers.clear()
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    console = _ConsoleHandler(sys.stdout)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.setLevel(logging.INFO)
    logger.addHandler(console)
    logger.addHandler(MemoryHandler(_MANY_RECORDS, flushLevel=logging.CRITICAL + 1, flushOnClose=False))


def errors_alone() -> None:
    """Show errors only from now on, in the processes of other ranks."""
    for handler in logger.handlers:
        handler.setLevel(logging.ERROR)


class Tracker(Protocol):
    """What else takes a run's figures; its methods raise whatever goes wrong."""

    name: str

    def log(self, x: int, values: Mapping[str, float]) -> None:
        """Figures at x = 1000 · epoch position, in order; one x may come in several parts."""
        ...

    def close(self) -> None:
        """The run ends here."""
        ...


class RunLog:
    """The logs in a run's folder; does nothing on ranks other than 0. Write errors are logged; training continues.

    Args:
        folder: the run's folder; None on the ranks that do not write.
        tensorboard: folder of the TensorBoard files; empty: the run's; None: no TensorBoard.
        start: where the run is resumed, in epochs: what an interrupted run logged beyond that is removed.
        trackers: where the figures go too.
    """

    def __init__(self, folder: Path | None, tensorboard: str | None = "", start: float = 0.0, trackers: Sequence[Tracker] = ()):
        self.folder: Any = folder
        self._start, self._trackers = start, trackers
        self._events_folder = None if tensorboard is None else tensorboard or str(folder)
        self._purge_step = int(1000 * start) + 1
        self._console: logging.Handler | None = None
        self._events: EventFile | None = None
        if folder is None:
            return
        with self._reported("console.txt"):
            self._open_console()
        with self._reported("log.txt"):
            self._remove_later_epochs()

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.error("%s could not be written, training continues: %s", self.folder / name, error)

    def _open_console(self) -> None:
        self._console = _QuietFileHandler(self.folder / "console.txt", encoding="utf-8")
        self._console.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for early in [handler for handler in logger.handlers if isinstance(handler, MemoryHandler)]:
            early.setTarget(self._console)
            early.flush()
            logger.removeHandler(early)
        logger.addHandler(self._console)

    def _remove_later_epochs(self) -> None:
        path = self.folder / "log.txt"
        if not path.exists():
            return
        kept = [line for line in path.read_text().splitlines() if _epoch_of(line) <= self._start]
        write_text(path, "".join(f"{line}\n" for line in kept))

    def scalars(self, x: int, **values: float) -> None:
        """Figures for TensorBoard and trackers at x = 1000 · epoch position."""
        if self.folder is None or not values:
            return
        self._track(x, values)
        if self._events_folder is None:
            return
        with self._reported("events.out.tfevents"):
            try:
                if self._events is None:
                    self._events, self._purge_step = EventFile(self._events_folder, self._purge_step), None
                self._events.add(x, values)
            except OSError:
                self._abandon_events()
                raise

    def _abandon_events(self) -> None:
        """Close a file whose last record may be torn; the next scalars open another one."""
        events, self._events = self._events, None
        if events is not None:
            with suppress(OSError):
                events.close()

    def epoch(self, **values: float) -> None:
        """One JSON object in log.txt; for trackers, its figures as `epoch/NAME`."""
        if self.folder is None:
            return
        with self._reported("log.txt"):
            _append(self.folder / "log.txt", f"{json.dumps(values)}\n".encode())
        if "epoch" in values:
            self._track(int(1000 * values["epoch"]), {f"epoch/{k}": v for k, v in values.items() if k != "epoch"})

    def _track(self, x: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            with _tracked(tracker):
                tracker.log(x, values)

    def close(self) -> None:
        """Close the files."""
        if self._events is not None:
            with self._reported("events.out.tfevents"):
                self._events.close()
        for tracker in self._trackers:
            with _tracked(tracker):
                tracker.close()
        if self._console is not None:
            logger.removeHandler(self._console)
            with self._reported("console.txt"):
                self._console.close()


@contextmanager
def _tracked(tracker: Tracker) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever kind a service's package has: training is worth more than a curve
        logger.error("--tracker %s failed, training continues: %s", tracker.name, error)


class _ConsoleHandler(logging.StreamHandler):
    """Messages on the terminal, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class _QuietFileHandler(logging.FileHandler):
    """A log file that ignores write errors: standard output has the messages too."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the default is a traceback on the console for each message."""


def _append(path: Path, line: bytes) -> None:
    """Append a line atomically: a partial write is undone."""
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        written = 0
        try:
            written = file.write(line)
        finally:
            if written != len(line):
                file.truncate(size)
    if written != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _epoch_of(line: str) -> float:
    """The epoch of a line of log.txt; infinity for a torn one."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
