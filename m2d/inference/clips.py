"""Audio files as command-line programs take them: listed, and decoded ahead in threads, as streams."""

import argparse
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..audio.decode import open_audio
from ..audio.listing import list_audio, readable_suffixes, words_of_others
from ..audio.sources.find import ARCHIVE_SUFFIXES
from ..utils.names import shown

logger = logging.getLogger("m2d")

# Samples that a thread hands over at a time. A thread whose last stretch was not taken yet waits.
_STRETCH = 1 << 18
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
    absolute, start = os.path.abspath(path), os.path.abspath(folder)
    return os.path.relpath(absolute, start) if os.path.commonpath([start, absolute]) == start else absolute


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


class DecodedClip:
    """An audio file that a thread decodes: iterate once for its waveform in stretches, float32 `[samples]`.

    Where decoding fails, the last item is the exception. What is wrong with a file that could be read is logged at its end.

    Attributes:
        warnings, seconds_left_out: as of `AudioStream`, complete after the iteration.
    """

    def __init__(self, path: Path, stopped: threading.Event):
        self.path = path
        self.warnings: list[str] = []
        self.seconds_left_out = 0.0
        self._stopped = stopped
        self._stretches: queue.Queue = queue.Queue(maxsize=1)

    def __iter__(self) -> Iterator[np.ndarray | Exception]:
        while isinstance(stretch := self._stretches.get(), np.ndarray):
            yield stretch
        if isinstance(stretch, Exception):
            yield stretch
            return
        for warning in self.warnings:
            logger.warning("%s", warning)

    def decode(self, sample_rate: int) -> None:
        """The thread's work."""
        try:
            with open_audio(self.path, sample_rate) as stream:
                waiting: list[np.ndarray] = []
                for block in stream:
                    waiting.append(block)
                    if sum(map(len, waiting)) >= _STRETCH:
                        if not self._put(np.concatenate(waiting)):
                            return
                        waiting = []
                if waiting:
                    self._put(np.concatenate(waiting))
            self.warnings, self.seconds_left_out = stream.warnings, stream.seconds_left_out
            self._put(None)
        except Exception as error:  # of whatever kind, it costs this file alone
            self._put(error)

    def _put(self, item: np.ndarray | Exception | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._stretches.put(item, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


def decode_ahead(paths: Sequence[Path], sample_rate: int, workers: int) -> Iterator[DecodedClip]:
    """Each file, in order, while threads decode it and the next ones. Iterate over each to its end before the next."""
    stopped = threading.Event()
    waiting: deque[DecodedClip] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for path in paths:
                clip = DecodedClip(path, stopped)
                pool.submit(clip.decode, sample_rate)
                waiting.append(clip)
                if len(waiting) > workers + 1:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
