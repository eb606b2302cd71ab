"""Audio files as command-line programs take them: listed, decoded ahead in threads, mistakes said and passed over."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from csv import DictReader
from pathlib import Path

import numpy as np

from ..audio.decode import load_audio
from ..audio.listing import find_audio

log = logging.getLogger("m2d")

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".aifc", ".au", ".caf", ".w64")


def list_clips(sources: Sequence[str | Path]) -> list[Path]:
    """Audio files: those named, those below the folders named, and those in the column `file_name` of the lists (.csv) named.

    Paths in a list are relative to its folder.

    Raises:
        FileNotFoundError: a file, or a folder, is not there.
        ValueError: a folder without audio, or a list without the column.
    """
    clips = []
    for source in map(Path, sources):
        if source.suffix.lower() == ".csv":
            found = _listed(source)
        elif source.is_dir():
            found = find_audio(source, SUFFIXES)
        elif source.exists():
            found = [source]
        else:
            raise FileNotFoundError(f"there is no file or folder {source}")
        if not found:
            raise ValueError(f"{source}: no audio files there (names that end in {', '.join(SUFFIXES)})")
        clips += found
    return clips


def _listed(path: Path) -> list[Path]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = DictReader(file)
        if "file_name" not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column 'file_name' (the columns are {', '.join(reader.fieldnames or ['none'])})")
        return [path.parent / row["file_name"] for row in reader]


def _load(path: Path, sample_rate: int) -> np.ndarray | Exception:
    try:
        waveform = load_audio(path, sample_rate)
    except (OSError, ValueError) as error:
        return error
    return waveform if np.isfinite(waveform).all() else ValueError(f"{path} holds NaN or infinity")


def decode_ahead(paths: Iterable[Path], sample_rate: int, threads: int) -> Iterator[tuple[Path, np.ndarray | Exception]]:
    """Each path with its waveform `[samples]`, or with why there is none, in their order; a few are decoded ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for path in paths:
            waiting.append((path, pool.submit(_load, path, sample_rate)))
            if len(waiting) > 2 * threads:
                first, future = waiting.popleft()
                yield first, future.result()
        for path, future in waiting:
            yield path, future.result()
