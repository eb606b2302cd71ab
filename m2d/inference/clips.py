"""Audio files as command-line programs take them: listed, and decoded ahead in threads, as streams."""

import argparse
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from ..audio.decode import open_audio
from ..audio.listing import list_audio, readable_suffixes, words_of_others
from ..audio.sources.find import ARCHIVE_SUFFIXES
from ..utils.names import shown

logger = logging.getLogger("m2d")

Item = TypeVar("Item")
Cut: TypeAlias = Callable[[Iterator[np.ndarray]], Iterator[Item]]

# Samples that are decoded at a time. A thread waits until all that it made of a file's earlier ones was taken.
_STRETCH = 1 << 18
# Files a thread that are decoded, or wait for it.
_CLIPS_AHEAD = 2
_POLL_SECONDS = 0.2


def list_clips(sources: Sequence[str | Path]) -> list[Path]:
    """Audio files: those named, those below the folders named, and those in the column `file_name` of the lists (.csv) named.

    Paths in a list are relative to its folder.

    Raises:
        FileNotFoundError: a file, or a folder, is not there.
        ValueError: a folder without audio, or a list that cannot be read.
    """
    clips: list[Path] = []
    for source in map(Path, sources):
        if source.suffix.lower() == ".csv":
            clips += [source.parent / name for name in _listed(source)]
        elif source.is_dir():
            found, others = list_audio(source, readable_suffixes())
            not_taken = words_of_others(others)
            if not found:
                endings = f"names that end in {', '.join(readable_suffixes())}"
                raise ValueError(f"{shown(source)}: no audio files in it ({not_taken or endings})")
            if not_taken:
                logger.warning("%s: %s", shown(source), not_taken)
            clips += found
        elif source.name.lower().endswith(ARCHIVE_SUFFIXES):
            raise ValueError(f"{shown(source)}: archives are read by m2d convert and m2d pack; unpack it for other programs")
        elif source.exists():
            clips.append(source)
        else:
            raise FileNotFoundError(f"there is no file or folder {shown(source)}")
    return clips


def name_in_list(path: str | Path, folder: Path) -> str:
    """A file's name in a list that is in `folder`: relative to it where the file is below it, else absolute."""
    return os.path.abspath(path).removeprefix(os.path.join(os.path.abspath(folder), ""))


def _listed(path: Path) -> Iterable[str]:
    try:
        from ..data.clip_list import read_list  # with pyarrow, which a program on files and folders needs not
    except ModuleNotFoundError as error:
        raise ValueError(f"{shown(path)}: lists need {error.name}: pip install 'm2d-audio[train]'") from None
    return read_list(path).names


def add_audio(parser: argparse.ArgumentParser) -> None:
    """The positional arguments of a program on audio."""
    parser.add_argument("audio", nargs="*", metavar="AUDIO", help="audio files, folders, or lists (.csv with a column file_name)")


def parse_with_audio(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse arguments among which flags and AUDIO come in any order; all that follows `--` is AUDIO."""
    words = list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    args = parser.parse_intermixed_args(words[:end])
    args.audio += words[end + 1 :]
    if not args.audio:
        parser.error("no audio: name files, folders, or lists (.csv)")
    return args


class DecodedClip(Generic[Item]):
    """An audio file that a thread decodes: iterate once for what `cut` makes of its stretches, float32 `[samples]`.

    Where decoding fails, the last item is the exception. What is wrong with a file that could be read is logged at its end.

    Attributes:
        warnings, seconds_left_out: as of `AudioStream`, complete after the iteration.
    """

    def __init__(self, path: Path, cut: Cut[Item], stopped: threading.Event):
        self.path = path
        self.warnings: list[str] = []
        self.seconds_left_out = 0.0
        self._cut, self._stopped = cut, stopped
        self._items: queue.SimpleQueue[Item | Exception | None] = queue.SimpleQueue()
        self._room = threading.Semaphore()

    def __iter__(self) -> Iterator[Item | Exception]:
        while (item := self._items.get()) is not None:
            self._room.release()
            yield item
            if isinstance(item, Exception):
                return
        for warning in self.warnings:
            logger.warning("%s", warning)

    def decode(self, sample_rate: int) -> None:
        """The thread's work."""
        try:
            with open_audio(self.path, sample_rate) as stream:
                for item in self._cut(_stretches(stream)):
                    while not self._room.acquire(timeout=_POLL_SECONDS):
                        if self._stopped.is_set():
                            return
                    self._items.put(item)
            self.warnings, self.seconds_left_out = stream.warnings, stream.seconds_left_out
            self._items.put(None)
        except Exception as error:  # of whatever kind, it costs this file alone
            self._items.put(error)


def _stretches(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks joined to stretches of `_STRETCH` samples or more, except the last one."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= _STRETCH:
            yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            waiting = []
    if waiting:
        yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)


def decode_ahead(paths: Sequence[Path], sample_rate: int, workers: int, cut: Cut[Item] = iter) -> Iterator[DecodedClip[Item]]:
    """Each file, in order, while threads decode it and the next ones. Iterate over each to its end before the next.

    Args:
        paths: the files.
        sample_rate: of their waveforms, in Hz.
        workers: threads.
        cut: makes of a file's stretches what is to be handed over; called in the threads.
    """
    stopped = threading.Event()
    todo: queue.SimpleQueue[DecodedClip | None] = queue.SimpleQueue()
    waiting: deque[DecodedClip] = deque()
    # Threads that stay, in place of a pool: its bookkeeping for each file costs as much as decoding a short one.
    threads: list[threading.Thread] = []
    try:
        for _ in range(min(workers, len(paths))):
            thread = threading.Thread(target=_decode_all, args=(todo, sample_rate), daemon=True)
            thread.start()
            threads.append(thread)
        for path in paths:
            waiting.append(DecodedClip(path, cut, stopped))
            todo.put(waiting[-1])
            if len(waiting) > _CLIPS_AHEAD * workers:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        stopped.set()
        with suppress(queue.Empty):
            while True:
                todo.get_nowait()
        for _ in threads:
            todo.put(None)
        for thread in threads:
            thread.join()


def _decode_all(clips: queue.SimpleQueue, sample_rate: int) -> None:
    """A thread's work, until a None comes."""
    while (clip := clips.get()) is not None:
        clip.decode(sample_rate)
