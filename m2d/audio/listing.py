"""Finding audio files below a folder."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..utils.names import shown
from .readers import has_ffmpeg

#: Suffixes of the formats that libsndfile reads, and of those that need PyAV.
SNDFILE_SUFFIXES = (
    *(".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".mp3", ".mp2", ".ogg", ".oga", ".opus"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".sph", ".nist", ".voc"),
)
FFMPEG_SUFFIXES = (
    *(".m4a", ".m4b", ".mp4", ".mov", ".3gp", ".aac", ".ac3", ".wma", ".webm", ".mka", ".mkv"),
    *(".wv", ".tta", ".ape", ".amr"),
)


def readable_suffixes() -> tuple[str, ...]:
    """Suffixes of all formats that can be read here: what every program takes of a folder, unless a flag says otherwise."""
    return SNDFILE_SUFFIXES + (FFMPEG_SUFFIXES if has_ffmpeg() else ())


def find_audio(folder: str | os.PathLike, suffixes: Iterable[str]) -> list[Path]:
    """Files below a folder whose names end in one of the suffixes, sorted by path.

    Upper and lower case count as the same. Linked folders are entered, once each.

    Raises:
        As `walk_files`.
    """
    return list_audio(folder, suffixes)[0]


def list_audio(folder: str | os.PathLike, suffixes: Iterable[str]) -> tuple[list[Path], Counter[str]]:
    """The files of `find_audio`; and how many other audio files there are, by suffix.

    Raises:
        As `walk_files`.
    """
    endings = tuple(suffix.lower() for suffix in suffixes)
    taken, others = [], Counter()
    for path in sorted(walk_files(folder)):
        name = os.path.basename(path).lower()
        if name.endswith(endings) and name not in endings:
            taken.append(Path(path))
        elif (suffix := os.path.splitext(name)[1]) in SNDFILE_SUFFIXES + FFMPEG_SUFFIXES:
            others[suffix] += 1
    return taken, others


def words_of_others(others: Mapping[str, int], remedy: str = "") -> str:
    """What `list_audio` did not take, in one line, with the flag that takes it; empty where it took all."""
    unreadable = {suffix for suffix in others if suffix in FFMPEG_SUFFIXES and not has_ffmpeg()}
    groups = (
        (sorted(set(others) - unreadable), remedy),
        (sorted(unreadable), "PyAV reads these: pip install 'm2d-audio[av]'"),
    )
    return "; ".join(
        f"{', '.join(f'{others[suffix]} {suffix}' for suffix in suffixes)} not taken" + (f" ({reason})" if reason else "")
        for suffixes, reason in groups
        if suffixes
    )


def walk_files(folder: str | os.PathLike) -> Iterator[str]:
    """Paths of all files below a folder, in no order. Linked folders are entered, and no folder twice.

    Raises:
        FileNotFoundError, NotADirectoryError, PermissionError: the folder, or one below it, cannot be read.
    """
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise NotADirectoryError(f"{shown(folder)} is not a folder")
        raise FileNotFoundError(f"there is no folder {shown(folder)}")
    entered = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        yield from (os.path.join(parent, name) for name in names)


def _raise(error: OSError) -> None:
    raise type(error)(f"{shown(error.filename)} cannot be read: {error.strerror}. Make it readable, or move it away")
