"""WAV: sizes that a recorder never completed, several chunks of samples, files that end before their header says so."""

import struct
from collections.abc import Sequence
from typing import BinaryIO

from .chunks import RIFF, chunks, lost
from .view import Layout, Part


def wav_layout(file: BinaryIO, size: int) -> Layout:
    """One part in place of a file whose samples libsndfile would not find; a warning for those that are lost."""
    found = list(chunks(file, size, RIFF))
    data = [content for name, content in found if name == b"data"]
    formats = [content for name, content in found if name == b"fmt "]
    if not data or not formats:
        return Layout()
    promised = len(data[-1])
    if data[-1].stop > size:
        return Layout(warning=lost(data[-1], size))
    behind = size - data[-1].stop - promised % 2 if found[-1][0] == b"data" else 0
    if behind > 0 and not promised:
        data[-1], behind = range(data[-1].start, size), 0
    elif len(data) == 1 and behind <= 0:
        return Layout()
    file.seek(formats[0].start)
    form = file.read(len(formats[0]))
    seconds = max(0, behind) / max(1, int.from_bytes(form[8:12], "little"))
    warning = f"has {seconds:.1f} s more than its header says: they are left out" if seconds else ""
    return Layout((_as_one_chunk(form, data),), warning, seconds)


def _as_one_chunk(form: bytes, data: Sequence[range]) -> Part:
    length = sum(map(len, data))
    limit = 0xFFFFFFFF  # means "to the end of the file"
    header = struct.pack("<4sI4s4sI", b"RIFF", min(limit, 20 + len(form) + length), b"WAVE", b"fmt ", len(form)) + form
    return Part((header + struct.pack("<4sI", b"data", min(limit, length)), *filter(len, data)))
