"""Finding audio files below a folder."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..utils.names import shown


def find_audio(folder: str | os.PathLike, suffixes: Iterable[str]) -> list[Path]:
    """Files below a folder whose names end in one of the suffixes, sorted by path.

    Upper and lower case count as the same. Linked folders are entered, once each.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such folder.
    """
    endings = tuple(suffix.lower() for suffix in suffixes)
    return [
        Path(path)
        for path in sorted(walk_files(folder))
        if path.lower().endswith(endings) and os.path.basename(path).lower() not in endings
    ]


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
