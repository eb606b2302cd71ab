"""Where the arrays of an .npz lie, so that part of one can be read in place. An .npz is a ZIP archive of .npy files
(APPNOTE.TXT 4.3, "general format of a .ZIP file"); `numpy.savez` stores them uncompressed.
"""

import os
import struct

import numpy as np

from .npy import read_header

_TAIL = 512  # holds the archive's directory where there are a few members
_END_OF_DIRECTORY = b"PK\x05\x06"
_DIRECTORY_ENTRY = b"PK\x01\x02"


def member_begins(fd: int) -> dict[str, int]:
    """Where the data of each member of an open .npz begin, in bytes, by name.

    Raises:
        ValueError: it is no whole .npz, or compressed.
    """
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
    end = tail.rfind(_END_OF_DIRECTORY)
    if end < 0 or len(tail) < end + 22:
        raise ValueError("not a whole .npz file" if size else "an empty file")
    count, length, at = struct.unpack_from("<HLL", tail, end + 10)
    directory = tail[end - length : end] if length <= end else os.pread(fd, length, at)
    begins, entry = {}, 0
    for _ in range(count):
        if directory[entry : entry + 4] != _DIRECTORY_ENTRY:
            raise ValueError("not a whole .npz file")
        method, name_size, extra_size, comment_size = struct.unpack_from("<10xH16xHHH", directory, entry)
        (local,) = struct.unpack_from("<L", directory, entry + 42)
        name = directory[entry + 46 : entry + 46 + name_size].decode()
        if method:
            raise ValueError(f"{name.removesuffix('.npy')} is compressed: write it by numpy.savez, from which a crop can be read")
        begins[name] = local + 30 + sum(struct.unpack("<HH", os.pread(fd, 4, local + 26)))
        entry += 46 + name_size + extra_size + comment_size
    return begins


def read_integer(fd: int, begin: int, name: str) -> int:
    """The value of the array `name`, which holds one integer and begins at `begin`."""
    header = read_header(fd, begin)
    if header.dtype.kind not in "iu" or int(np.prod(header.shape)) != 1:
        raise ValueError(f"{name}: {header.dtype} of shape {header.shape}, expected one integer")
    return int(np.frombuffer(os.pread(fd, header.dtype.itemsize, begin + header.offset), header.dtype)[0])
