"""What to give a decoder instead of a file that it would read only in part."""

from typing import BinaryIO

from ..readers import ffmpeg_format
from .chunks import cut_short
from .flac import flac_layout
from .mpeg import behind_id3, mpeg_layout
from .ogg import ogg_layout
from .riff import wav_layout
from .view import Layout, Part

# What files of libsndfile's formats begin with, where `ffmpeg_format` does not know them.
_SNDFILES = (b"fLaC", b"OggS", b"caff", b"riff", b".snd", b"dns.", b"NIST_1A", b"Creative Voice File")
_CHUNKED = (b"WAVE", b"AIFF", b"AIFC")  # behind the first eight bytes


def read_layout(file: BinaryIO, size: int, name: str = "") -> Layout:
    """How to decode a file of `size` bytes, by its first bytes; an MP3, which may begin with anything, also by its name.

    Raises:
        OSError: the file cannot be read.
    """
    start = behind_id3(file, 0)
    file.seek(start)
    head = file.read(32)
    is_other = head.startswith(_SNDFILES) or head[8:12] in _CHUNKED or ffmpeg_format(head) is not None
    if is_other and start:
        return Layout((Part((range(start, size),)),))
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return wav_layout(file, size)
    if head.startswith(b"OggS"):
        return ogg_layout(file, size)
    if head.startswith(b"fLaC"):
        return flac_layout(file, size)
    if not is_other and (start or (head[:1] == b"\xff" and head[1:2] >= b"\xe0") or name.lower().endswith(".mp3")):
        return mpeg_layout(file, size)
    return Layout(warning=cut_short(file, size))
