"""Read part of an array out of a .npy file, or out of an uncompressed .npz, without loading the rest.

An .npz is a ZIP archive of .npy files (APPNOTE.TXT 4.3, "general format of a .ZIP file"); `numpy.savez` stores them
uncompressed. Of a clip in the page cache, `zipfile` would make reading a crop a quarter slower.
"""

import io
import math
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

_USUAL_HEADER = 128
_LONGEST_HEADER = 1 << 14  # NumPy's own limit is 10,000
_KINDS, _MOST_VALUES = "fciub", 1 << 62
_WHOLE = 1 << 20  # up to this many bytes one read of everything beats one read per mel band (measured)

_TAIL = 512  # holds the archive's directory where there are a few members
_LONGEST_DIRECTORY = 1 << 16
_END_OF_DIRECTORY = b"PK\x05\x06"
_DIRECTORY_ENTRY = b"PK\x01\x02"
_ELSEWHERE = 0xFFFFFFFF  # a size of 4 GiB or more


class ArrayHeader(NamedTuple):
    """What a .npy header says; `offset` is where the values begin, in bytes from the header's first."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@lru_cache(maxsize=4096)
def _parse(head: bytes) -> ArrayHeader:
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f".npy format {version} is not supported")
    try:
        shape, fortran, dtype = readers[version](stream)
    except Exception:  # NumPy evaluates the header's text as Python literals, which may raise anything
        raise ValueError("an invalid .npy header") from None
    if dtype.kind not in _KINDS:
        raise ValueError(f"values of type {dtype}, expected numbers")
    if min(shape, default=0) < 0 or math.prod(shape) > _MOST_VALUES:
        raise ValueError("a .npy header with an invalid shape")
    return ArrayHeader(shape, dtype, fortran, stream.tell())


def array_from_bytes(data: bytes) -> np.ndarray:
    """The array of a whole .npy file in memory, a read-only view.

    Raises:
        ValueError: it is no .npy of numbers, or shorter than its header says.
    """
    header = _parse(data[: _header_size(data)])
    if len(data) - header.offset < header.nbytes:
        raise ValueError(f"{len(data)} bytes, but shape {header.shape} of {header.dtype} takes more")
    count = math.prod(header.shape)
    values = np.frombuffer(data, header.dtype, count, header.offset)
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def _header_size(head: bytes) -> int:
    """Bytes of the header that begins with these."""
    if head[:6] != b"\x93NUMPY" or len(head) < 12:
        raise ValueError("not a .npy file" if head else "an empty file")
    wide = head[6] > 1
    size = int.from_bytes(head[8 : 12 if wide else 10], "little") + (12 if wide else 10)
    if size > _LONGEST_HEADER:
        raise ValueError("an invalid .npy header")
    return size


def read_header(fd: int, at: int = 0) -> ArrayHeader:
    """The header of the .npy that begins `at` bytes into an open file.

    Raises:
        ValueError: there is no whole .npy header.
    """
    head = os.pread(fd, _USUAL_HEADER, at)
    size = _header_size(head)
    if size > len(head):
        head = os.pread(fd, size, at)
        if size > len(head):
            raise ValueError("truncated within its header")
    return _parse(head[:size])


def check_size(fd: int, header: ArrayHeader, at: int = 0) -> None:
    """Raise ValueError where the file is shorter than its header says."""
    has, needs = os.fstat(fd).st_size, at + header.offset + header.nbytes
    if has < needs:
        raise ValueError(f"truncated: {has} bytes, but shape {header.shape} of {header.dtype} takes {needs}")


class Scratch:
    """Memory that is used again from read to read; it grows to the largest one."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def take(self, size: int) -> np.ndarray:
        """`size` bytes, uint8, of any content; the next call hands out the same ones."""
        if len(self._bytes) < size:
            self._bytes = np.empty(size, dtype=np.uint8)
        return self._bytes[:size]


def read_columns(fd: int, header: ArrayHeader, start: int, out: np.ndarray, scratch: Scratch, at: int = 0) -> None:
    """Write the columns of a `[1, rows, columns]` array from `start` on to `out` `[rows, n]`, converted to its dtype.

    Raises:
        ValueError: the file ends before them.
    """
    _, rows, columns = header.shape
    begin, width, count = at + header.offset, header.dtype.itemsize, out.shape[1]
    if header.fortran:
        piece = scratch.take(count * rows * width)
        _read_into(fd, begin + start * rows * width, piece)
        out[:] = piece.view(header.dtype).reshape(count, rows).T
    elif header.nbytes <= _WHOLE:
        piece = scratch.take(header.nbytes)
        _read_into(fd, begin, piece)
        out[:] = piece.view(header.dtype).reshape(rows, columns)[:, start : start + count]
    else:
        pieces = scratch.take(rows * count * width).reshape(rows, count * width)
        for row in range(rows):
            _read_into(fd, begin + (row * columns + start) * width, pieces[row])
        out[:] = pieces.view(header.dtype)


def _read_into(fd: int, at: int, piece: np.ndarray) -> None:
    if os.preadv(fd, [piece], at) != piece.nbytes:
        raise ValueError("the file ended while it was read")


class Member(NamedTuple):
    """Where a member's bytes are in the archive."""

    begin: int
    end: int

    def header(self, fd: int, name: str) -> ArrayHeader:
        """The header of the .npy that the member is; its values are in the member as a whole.

        Raises:
            ValueError: it is no whole .npy.
        """
        header = read_header(fd, self.begin)
        if header.offset + header.nbytes > self.end - self.begin:
            raise ValueError(f"{name}: shape {header.shape} of {header.dtype} takes more than its {self.end - self.begin} bytes")
        return header


def find_members(fd: int) -> dict[str, Member]:
    """The members of an open .npz by name.

    Raises:
        ValueError: it is no whole .npz, or compressed.
    """
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
    end = tail.rfind(_END_OF_DIRECTORY)
    if end < 0 or len(tail) < end + 22:
        raise ValueError("not a whole .npz file" if size else "an empty file")
    count, length, at = struct.unpack_from("<HLL", tail, end + 10)
    if length > _LONGEST_DIRECTORY:
        raise ValueError("not an .npz of a few arrays")
    directory = tail[end - length : end] if length <= end else os.pread(fd, length, at)
    try:
        return dict(_entries(fd, directory, count, size))
    except struct.error:
        raise ValueError("not a whole .npz file") from None


def _entries(fd: int, directory: bytes, count: int, file_size: int) -> Iterator[tuple[str, Member]]:
    at = 0
    for _ in range(count):
        if directory[at : at + 4] != _DIRECTORY_ENTRY:
            raise ValueError("not a whole .npz file")
        method, size, name_size, extra_size, comment_size = struct.unpack_from("<10xH8xL4xHHH", directory, at)
        (local,) = struct.unpack_from("<L", directory, at + 42)
        name = directory[at + 46 : at + 46 + name_size].decode()
        if at + 46 + name_size > len(directory):
            raise ValueError("not a whole .npz file")
        if method:
            raise ValueError(f"{name.removesuffix('.npy')} is compressed: write it by numpy.savez, from which a crop can be read")
        begin = local + 30 + sum(struct.unpack("<HH", os.pread(fd, 4, local + 26)))
        yield name, Member(begin, file_size if size == _ELSEWHERE else min(begin + size, file_size))
        at += 46 + name_size + extra_size + comment_size


def read_integer(fd: int, member: Member, name: str) -> int:
    """The value of the array `name`, which holds one integer of at least 0.

    Raises:
        ValueError: it holds something else.
    """
    header = member.header(fd, name)
    if header.dtype.kind not in "iu" or header.nbytes != header.dtype.itemsize:
        raise ValueError(f"{name}: {header.dtype} of shape {header.shape}, expected one integer")
    value = int(np.frombuffer(os.pread(fd, header.nbytes, member.begin + header.offset), header.dtype)[0])
    if value < 0:
        raise ValueError(f"{name}: {value}, expected a number of at least 0")
    return value
