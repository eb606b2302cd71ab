"""FLAC: several files put one after the other, of which a decoder reads the first."""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from .view import Layout, Part

_MARKER = b"fLaC"
#: A stream's begin: the marker, and the header of the block STREAMINFO, which is the last of the blocks (0x80) or not.
_BEGINS = (_MARKER + b"\x00\x00\x00\x22", _MARKER + b"\x80\x00\x00\x22")
_READ_AT_ONCE = 1 << 18


def flac_layout(file: BinaryIO, size: int) -> Layout:
    """A part for each of several streams; none for a file of one stream."""
    further = list(_further_streams(file))
    if not further:
        return Layout()
    return Layout(tuple(Part((range(*ends),)) for ends in zip([0, *further], [*further, size], strict=True)))


def _further_streams(file: BinaryIO) -> Iterator[int]:
    """Where the second stream and those behind it begin."""
    position = len(_MARKER)
    while True:
        file.seek(position)
        block = file.read(_READ_AT_ONCE)
        if len(block) < len(_BEGINS[0]):
            return
        found = -1 if _holds_marker(block) else len(block)
        while (found := block.find(_MARKER, found + 1)) >= 0:
            if block.startswith(_BEGINS, found):
                yield position + found
        position += len(block) - len(_BEGINS[0]) + 1  # a begin may lie across two blocks


def _holds_marker(block: bytes) -> bool:
    """Whether the marker is in a block: like `in`, in a quarter of the time."""
    marker = np.frombuffer(_MARKER, np.uint32)[0]
    return any((np.frombuffer(block, np.uint32, (len(block) - i) // 4, i) == marker).any() for i in range(4))
