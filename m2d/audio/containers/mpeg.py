"""MPEG audio (MP3): how long a file is, which libsndfile guesses from its first frame, and where its streams begin.

A stream may begin with a tag: a frame that holds, in place of sound, the number of frames ("Xing" or "Info"; Fraunhofer's
"VBRI"). libsndfile trusts it. Where it is missing or wrong, a right one is put in front of the frames.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO

from .view import FileView, Layout, Part, Piece

_KBITS = {  # by MPEG 1 (or 2 and 2.5) and layer
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)
_RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # by the header's version: MPEG 1, 2, 2.5
_HEAD = 44  # bytes of a frame that reach behind the tag's number of bytes
_HAS_FRAMES, _HAS_BYTES = 1, 2  # the tag's flags
_KBITS_OF_OUR_TAG = 5  # the index of a rate whose frames hold a tag, whatever the version
_ID3V1_BYTES = 128
_SEARCHED_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class _Frame:
    """What a frame's header says; all frames of a stream are of one kind: version, layer, sampling rate, mono or not."""

    length: int
    samples: int
    kind: tuple[int, int, int, bool]
    tag_offset: int


@dataclass
class _Stream:
    """Frames of one kind, the first of which begins with `header`."""

    header: bytes
    frame: _Frame
    tag: range | None  # the frame that holds the tag
    count: int = 0
    constant_rate: bool = True
    ranges: list[range] = field(default_factory=list)


def mpeg_layout(file: BinaryIO, size: int) -> Layout:
    """A part for each stream; none for a file of one stream whose tag is right, or whose frames are all the same."""
    start = behind_id3(file, 0)
    file.seek(start)
    is_aac = (int.from_bytes(file.read(2), "big") & 0xFFF6) == 0xFFF0  # a layer that MP3 does not use
    if is_aac or _tag_is_right(file, start, size):
        return Layout()
    streams = [stream for stream in _streams(file, start, size) if stream.count]
    if len(streams) == 1 and streams[0].tag is None and streams[0].constant_rate and _is_all(streams[0].ranges, start):
        return Layout()
    parts, warning = [], ""
    for stream in streams:
        pieces, promised = _pieces(file, stream)
        parts.append(Part(pieces, stream.count * stream.frame.samples))
        if promised > stream.count + 1:
            warning = f"is cut short: {stream.count} of the {promised} frames that its header promises are there"
    return Layout(tuple(parts), warning)


def _is_all(ranges: Sequence[range], start: int) -> bool:
    """Whether nothing lies before and between the frames."""
    return len(ranges) == 1 and ranges[0].start == start


@lru_cache(maxsize=4096)
def _frame(header: bytes) -> _Frame | None:
    """What a frame's first four bytes say; None where no frame begins so, or one whose rate the header does not give."""
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    kbits, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or kbits in (0, 15):
        return None
    is_mpeg1, mono = version == 3, header[3] >> 6 == 3
    bits = 1000 * _KBITS[is_mpeg1, layer][kbits - 1]
    hertz = _RATES[rate] // _RATE_DIVISORS[version]
    samples = 384 if layer == 1 else 576 if layer == 3 and not is_mpeg1 else 1152
    slot = 4 if layer == 1 else 1
    side_information = (17 if mono else 32) if is_mpeg1 else (9 if mono else 17)
    length = (samples // (8 * slot) * bits // hertz + padding) * slot
    return _Frame(length, samples, (version, layer, hertz, mono), 4 + side_information)


def behind_id3(file: BinaryIO | FileView, position: int) -> int:
    """Where the ID3v2 tags end that begin here."""
    while True:
        file.seek(position)
        header = file.read(10)
        if len(header) < 10 or not header.startswith(b"ID3"):
            return position
        length = 0
        for byte in header[6:]:
            length = length << 7 | byte & 0x7F
        position += 10 + length + (10 if header[5] & 0x10 else 0)


def _has_tag(head: bytes, frame: _Frame) -> bool:
    return frame.kind[1] == 3 and (head[frame.tag_offset :][:4] in (b"Xing", b"Info") or head[36:40] == b"VBRI")


def _promised(head: bytes, frame: _Frame) -> tuple[int, int]:
    """Numbers of frames and of bytes that a tag states; 0 where it states none."""
    tag = head[frame.tag_offset :]
    if tag[:4] not in (b"Xing", b"Info") or not tag[7] & _HAS_FRAMES:
        return 0, 0
    frames, size = struct.unpack(">II", tag[8:16])
    return frames, size if tag[7] & _HAS_BYTES else 0


def _tag_is_right(file: BinaryIO, start: int, size: int) -> bool:
    file.seek(start)
    head = file.read(_HEAD + 8)
    frame = _frame(head[:4])
    if frame is None or not _has_tag(head, frame):
        return False
    frames, told = _promised(head, frame)
    # Encoders differ in whether a tag counts its own frame.
    return frames > 0 and 0 <= _end_of_sound(file, size) - start - told <= frame.length


def _end_of_sound(file: BinaryIO, size: int) -> int:
    file.seek(max(0, size - _ID3V1_BYTES))
    return size - _ID3V1_BYTES if file.read(3) == b"TAG" else size


def _streams(file: BinaryIO, position: int, size: int) -> Iterator[_Stream]:
    """The streams of a file; what lies between the frames is in none of them."""
    stream = None
    while position + 4 <= size:
        file.seek(position)
        head = file.read(_HEAD)
        frame = _frame(head[:4])
        if frame is None or ((stream is None or frame.kind != stream.frame.kind) and not _is_followed(file, position, frame)):
            position = _next_frame(file, max(position + 1, behind_id3(file, position)))
            continue
        if position + frame.length > size:
            break
        has_tag = _has_tag(head, frame)
        if stream is None or has_tag or frame.kind != stream.frame.kind:
            if stream is not None:
                yield stream
            stream = _Stream(head[:4], frame, range(position, position + frame.length) if has_tag else None)
        if not has_tag:
            stream.count += 1
            stream.constant_rate &= head[2] >> 4 == stream.header[2] >> 4
            if not stream.ranges or stream.ranges[-1].stop != position:
                stream.ranges.append(range(position, position))
            stream.ranges[-1] = range(stream.ranges[-1].start, position + frame.length)
        position += frame.length
    if stream is not None:
        yield stream


def _is_followed(file: BinaryIO, position: int, frame: _Frame) -> bool:
    """Whether the next frame is of the same kind: the first bytes of one may be found by chance."""
    file.seek(position + frame.length)
    following = _frame(file.read(4))
    return following is not None and following.kind == frame.kind


def _next_frame(file: BinaryIO, position: int) -> int:
    """Where the next two frames of one kind begin; the end of the file where there are none."""
    while True:
        file.seek(position)
        block = file.read(_SEARCHED_AT_ONCE)
        found = -1
        while (found := block.find(b"\xff", found + 1)) >= 0:
            frame = _frame(block[found : found + 4])
            if frame is not None and _is_followed(file, position + found, frame):
                return position + found
        if len(block) < _SEARCHED_AT_ONCE:
            return position + len(block)
        position += len(block) - 3


def _pieces(file: BinaryIO, stream: _Stream) -> tuple[tuple[Piece, ...], int]:
    """A stream with a tag that is right, and the number of frames that its own promised (0: none did)."""
    if stream.frame.kind[1] != 3:
        return tuple(stream.ranges), 0
    length = sum(map(len, stream.ranges))
    promised, told, tag = 0, 0, b""
    if stream.tag is not None:
        file.seek(stream.tag.start)
        tag = file.read(len(stream.tag))
        promised, told = _promised(tag, stream.frame)
    if promised:  # encoder delay and padding are behind the numbers
        offset = stream.frame.tag_offset + 8
        numbers = struct.pack(">I", max(promised, stream.count)) + (struct.pack(">I", len(tag) + length) if told else b"")
        tag = tag[:offset] + numbers + tag[offset + len(numbers) :]
    else:
        tag = _new_tag(stream)
    return (tag, *stream.ranges), promised


def _new_tag(stream: _Stream) -> bytes:
    first = stream.header
    header = bytes((first[0], first[1] | 1, _KBITS_OF_OUR_TAG << 4 | first[2] & 0x0C, first[3]))
    frame = _frame(header)
    assert frame is not None  # a frame's header without its bit rate
    tag = header.ljust(frame.tag_offset, b"\0") + struct.pack(">4sII", b"Info", _HAS_FRAMES, stream.count)
    return tag.ljust(frame.length, b"\0")
