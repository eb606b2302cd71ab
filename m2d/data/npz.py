"""Where the arrays of an .npz are, so that part of one can be read in place. An .npz is a ZIP archive of .npy files
(APPNOTE.TXT 4.3, "general format of a .ZIP file"); `numpy.savez` stores them uncompressed.

Of a clip in the page cache, `zipfile` would make reading a crop a quarter slower.
"""

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .npy import ArrayHeader, read_header

_TAIL = 512  # holds the archive's directory where there are a few members
_LONGEST_DIRECTORY = 1 << 16
_END_OF_DIRECTORY = b"PK\x05\x06"
_DIRECTORY_ENTRY = b"PK\x01\x02"
_ELSEWHERE = 0xFFFFFFFF  # a size of 4 GiB or more


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
