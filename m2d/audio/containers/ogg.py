"""Ogg: several streams one after the other (chained), of which a decoder reads the first, or at the same time (multiplexed)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from .view import Layout, Part

_HEADER = struct.Struct("<4sBBqIIIB")
_BEGINS, _ENDS = 2, 4  # a page's flags: the first, the last of its stream
_SEARCHED_AT_ONCE = 1 << 16
_AUDIO = (b"\x01vorbis", b"OpusHead", b"\x7fFLAC", b"Speex   ")


@dataclass
class _Stream:
    """One logical stream of a link of the chain."""

    is_audio: bool
    pages: list[range] = field(default_factory=list)
    ended: bool = False

    def add(self, page: range) -> None:
        if self.pages and self.pages[-1].stop == page.start:
            page = range(self.pages.pop().start, page.stop)
        self.pages.append(page)


def ogg_layout(file: BinaryIO, size: int) -> Layout:
    """A part for each audio stream of a chained or multiplexed file; none for a file of one stream."""
    links: list[dict[int, _Stream]] = []
    beginning = False  # among the first pages of a link's streams
    for page, flags, serial, content in _pages(file):
        begins = bool(flags & _BEGINS)
        if begins and not beginning:
            links.append({})
        beginning = begins
        if begins:
            links[-1][serial] = _Stream(content.startswith(_AUDIO))
        if links and serial in links[-1]:
            links[-1][serial].add(page)
            links[-1][serial].ended |= bool(flags & _ENDS) and page.stop <= size
    streams = [stream for link in links for stream in link.values()]
    cut = any(stream.is_audio and not stream.ended for stream in streams)
    parts = tuple(Part(tuple(stream.pages)) for stream in streams if stream.is_audio) if len(streams) > 1 else ()
    return Layout(parts, "is cut short: its last page is missing" if cut else "")


def _pages(file: BinaryIO) -> Iterator[tuple[range, int, int, bytes]]:
    """Of each page: its bytes' range, its flags, the stream's number, and the first bytes of one that begins a stream."""
    position = 0
    while True:
        file.seek(position)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        magic, version, flags, _, serial, _, _, segments = _HEADER.unpack(header)
        if magic != b"OggS" or version:
            position = _next_page(file, position + 1)
            continue
        size = sum(file.read(segments))
        page = range(position, position + _HEADER.size + segments + size)
        yield page, flags, serial, file.read(8) if flags & _BEGINS else b""
        position = page.stop


def _next_page(file: BinaryIO, position: int) -> int:
    """Where the next page begins, behind bytes that are none; the end of the file where there is none."""
    while True:
        file.seek(position)
        block = file.read(_SEARCHED_AT_ONCE)
        found = block.find(b"OggS")
        if found >= 0:
            return position + found
        if len(block) < _SEARCHED_AT_ONCE:
            return position + len(block)
        position += len(block) - 3
