"""Audio files decoded ahead, in threads or processes, as streams. Free of torch, as is `decoder`."""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from .decoder import Cut, DecoderProcess, FileEnd, decode_file

logger = logging.getLogger("m2d")

Item = TypeVar("Item")

# Files a thread that are decoded, or wait for it.
_CLIPS_AHEAD = 2
_POLL_SECONDS = 0.2


class DecodedClip(Generic[Item]):
    """An audio file that a thread decodes: iterate once for what the file is cut into.

    Where decoding fails, the last item is the exception. What is wrong with a file that could be read is logged at its end.
    A thread waits until what it made of the file's earlier stretches was taken.

    Args:
        path: the file.
        receive: called with each item, in the thread.
        stopped: set when no more is taken.

    Attributes:
        warnings, seconds_left_out: as of `AudioStream`, complete after the iteration.
    """

    def __init__(self, path: Path, receive: Callable[[Item], Item], stopped: threading.Event):
        self.path = path
        self.warnings: list[str] = []
        self.seconds_left_out = 0.0
        self._receive, self._stopped = receive, stopped
        self._items: queue.SimpleQueue[Item | FileEnd | Exception] = queue.SimpleQueue()
        self._room = threading.Lock()  # which a thread takes for an item, until that is taken

    def __iter__(self) -> Iterator[Item | Exception]:
        while not isinstance(item := self._items.get(), FileEnd):
            if isinstance(item, Exception):
                yield item
                return
            self._room.release()
            yield item
        self.warnings, self.seconds_left_out = item.warnings, item.seconds_left_out
        for warning in self.warnings:
            logger.warning("%s", warning)

    def fill(self, items: Iterable[Item | FileEnd]) -> None:
        """Take a file's items; the thread's work."""
        try:
            for item in items:
                if isinstance(item, FileEnd):
                    self._items.put(item)
                    return
                received = self._receive(item)
                while not self._room.acquire(timeout=_POLL_SECONDS):
                    if self._stopped.is_set():
                        return
                self._items.put(received)
        except Exception as error:  # of whatever kind, it costs this file alone
            self._items.put(error)


def _as_it_is(item: Item) -> Item:
    return item


def decode_ahead(
    paths: Sequence[Path],
    sample_rate: int,
    workers: int,
    cut: Cut[Item] = iter,
    receive: Callable[[Item], Item] = _as_it_is,
    in_processes: bool = False,
) -> Iterator[DecodedClip[Item]]:
    """Each file, in order, while threads decode it and the next ones. Iterate over each to its end before the next.

    Args:
        paths: the files.
        sample_rate: of their waveforms, in Hz.
        workers: threads.
        cut: makes of a file's stretches what is to be handed over; called where they are decoded.
        receive: called with each of these, in the threads; what it returns is handed over.
        in_processes: each thread has a process decode its files. `cut` and what it gives are pickled.

    Raises:
        OSError: a thread cannot be started.
    """
    stopped = threading.Event()
    todo: queue.SimpleQueue[DecodedClip | None] = queue.SimpleQueue()
    waiting: deque[DecodedClip] = deque()
    workers = min(workers, len(paths))
    with ExitStack() as ending:  # called from last to first, all of it, though Ctrl-C may come again
        processes = _start_processes(workers, sample_rate, cut) if in_processes else []
        for process in processes:  # once more: a thread that took its last file just then has started its process again
            ending.callback(process.stop)
        threads: list[threading.Thread] = []
        ending.callback(_end_threads, threads, todo)
        decoders = [process.decode for process in processes] or [partial(decode_file, sample_rate=sample_rate, cut=cut)] * workers
        # Threads that stay, in place of a pool: its bookkeeping for each file costs as much as decoding a short one.
        for decoder in decoders:
            threads.append(_start_thread(todo, decoder, stopped))
        for process in processes:
            ending.callback(process.stop)
        ending.callback(stopped.set)
        for path in paths:
            waiting.append(DecodedClip(path, receive, stopped))
            todo.put(waiting[-1])
            if len(waiting) > _CLIPS_AHEAD * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()


def _start_thread(clips: queue.SimpleQueue, decode: Callable[[Path], Iterator], stopped: threading.Event) -> threading.Thread:
    thread = threading.Thread(target=_decode_all, args=(clips, decode, stopped), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(f"{error}: lower --workers") from None
    return thread


def _end_threads(threads: list[threading.Thread], clips: queue.SimpleQueue) -> None:
    for _ in threads:
        clips.put(None)
    for thread in threads:
        thread.join()


def _decode_all(clips: queue.SimpleQueue, decode: Callable[[Path], Iterator], stopped: threading.Event) -> None:
    """A thread's work, until a None comes, or it is stopped."""
    while (clip := clips.get()) is not None and not stopped.is_set():
        with closing(decode(clip.path)) as items:
            clip.fill(items)


def _start_processes(count: int, sample_rate: int, cut: Cut) -> list[DecoderProcess]:
    """Processes that wait for files; none where they cannot be started."""
    processes: list[DecoderProcess] = []
    try:
        for _ in range(count):
            processes.append(DecoderProcess(sample_rate, cut))
        for process in processes:
            process.wait()
        return processes
    except BaseException as error:
        for process in processes:
            process.stop()
        if not isinstance(error, OSError):
            raise
        logger.warning("decoding in threads: %s", error)
        return []
