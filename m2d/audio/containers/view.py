"""A file's bytes in another order: what a decoder reads in place of a file that it would misread."""

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

#: Bytes of one's own, or a range of a file's.
Piece = bytes | range


@dataclass(frozen=True)
class Part:
    """A stretch of a file that is decoded as if it were a file.

    Attributes:
        pieces: what it is made of.
        frames: samples per channel that a decoder should find in it; 0: unknown.
    """

    pieces: tuple[Piece, ...]
    frames: int = 0


@dataclass(frozen=True)
class Layout:
    """How a file is decoded: `parts` one after the other, or, without any, as it is.

    `warning`: what is wrong with it, in words that follow its name. `seconds_left_out`: of its sound.
    """

    parts: tuple[Part, ...] = ()
    warning: str = ""
    seconds_left_out: float = 0.0


class FileView(io.RawIOBase):
    """Pieces of a file, and bytes of one's own, as one file to read and to seek in.

    Args:
        file: what the ranges belong to. Others may move its position between two reads, but not during one.
        pieces: what comes one after the other.

    Attributes:
        error: of reading the file, which then seems to end there: decoders call from C, where nothing can be raised.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]):
        self._file, self._pieces = file, pieces
        self._starts = [0, *accumulate(map(len, pieces))]
        self._position = 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(target) and self._position < self._starts[-1]:
            i = bisect_right(self._starts, self._position) - 1
            piece, inside = self._pieces[i], self._position - self._starts[i]
            wanted = piece[inside : inside + len(target) - filled]
            if isinstance(wanted, range):
                wanted = self._read(wanted)
                if not wanted:
                    break
            target[filled : filled + len(wanted)] = wanted
            filled += len(wanted)
            self._position += len(wanted)
        return filled

    def _read(self, wanted: range) -> bytes:
        try:
            self._file.seek(wanted.start)
            return self._file.read(len(wanted))
        except OSError as error:
            self.error = error
            return b""
