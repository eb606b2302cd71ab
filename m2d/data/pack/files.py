"""Where the files of a pack are read from: a folder (an address: remote.py)."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ...utils.errors import FileError
from ...utils.read_file import open_regular
from .format import chunk_path


class Piece(NamedTuple):
    """Bytes of a chunk's array."""

    chunk: int
    begin: int
    size: int


class PackFiles(ABC):
    """The files of one pack.

    Attributes:
        source: its folder or address, for messages.
    """

    source: Path | str

    @abstractmethod
    def head(self) -> AbstractContextManager[Path]:
        """A folder with pack.json and the chunks' indices, there while the block runs."""

    @abstractmethod
    def size(self, chunk: int, part: str) -> int:
        """Bytes of a chunk's file; 0 if there is none."""

    @abstractmethod
    def mark(self, chunk: int) -> str:
        """A text that changes when the chunk does."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """The pack's place, the same wherever the program is started."""

    @abstractmethod
    def read(self, part: str, pieces: Sequence[Piece], out: Sequence[np.ndarray]) -> None:
        """Fill contiguous arrays with pieces of the chunks' files `part`.

        Raises:
            FileError: a file ended early, or cannot be fetched.
            OSError: it cannot be read.
        """

    @abstractmethod
    def open(self, chunk: int, part: str) -> BinaryIO:
        """A chunk's file that is there, from its beginning.

        Raises:
            OSError: it cannot be opened.
        """

    def where(self, chunk: int, part: str) -> str:
        """A chunk's file, for messages."""
        return f"{self.source}/{chunk_path('', chunk, part)}"


class LocalPack(PackFiles):
    """A pack in a folder."""

    def __init__(self, folder: Path):
        self.source = self.folder = folder
        self._open: dict[tuple[int, str], int] = {}

    @contextmanager
    def head(self) -> Iterator[Path]:
        yield self.folder

    def size(self, chunk: int, part: str) -> int:
        path = chunk_path(self.folder, chunk, part)
        return path.stat().st_size if path.is_file() else 0

    def mark(self, chunk: int) -> str:
        found = chunk_path(self.folder, chunk, "index.npz").stat()
        return f"{found.st_size}:{found.st_mtime_ns}"

    @property
    def identity(self) -> str:
        return str(self.folder.resolve())

    def read(self, part: str, pieces: Sequence[Piece], out: Sequence[np.ndarray]) -> None:
        if hasattr(os, "posix_fadvise"):  # so that the disk works on the whole batch at once
            for chunk, begin, size in pieces:
                os.posix_fadvise(self._fd(chunk, part), begin, size, os.POSIX_FADV_WILLNEED)
        for crop, (chunk, begin, size) in zip(out, pieces, strict=True):
            if os.preadv(self._fd(chunk, part), [crop], begin) != size:
                raise FileError(f"{self.where(chunk, part)}: the file ended while it was read")

    def open(self, chunk: int, part: str) -> BinaryIO:
        return open(open_regular(chunk_path(self.folder, chunk, part)), "rb")

    def _fd(self, chunk: int, part: str) -> int:
        key = chunk, part
        if key not in self._open:
            opened = open_regular(chunk_path(self.folder, chunk, part))
            if self._open.setdefault(key, opened) != opened:  # another thread was faster
                os.close(opened)
        return self._open[key]

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        self.close()
