"""What a decoder should be given in the place of a file that it would read in part."""

from typing import BinaryIO

from .flac import flac_layout
from .mpeg import mpeg_layout
from .ogg import ogg_layout
from .riff import wav_layout
from .view import Layout


def read_layout(file: BinaryIO, size: int, name: str = "") -> Layout:
    """How to decode a file of so many bytes; by its first bytes, but an MP3, which may begin with anything, also by its name.

    Raises:
        OSError: the file cannot be read.
    """
    file.seek(0)
    head = file.read(12)
    if head.startswith(b"RIFF") and head[8:] == b"WAVE":
        return wav_layout(file, size)
    if head.startswith(b"OggS"):
        return ogg_layout(file)
    if head.startswith(b"fLaC"):
        return flac_layout(file, size)
    if head.startswith(b"ID3") or (head[:1] == b"\xff" and head[1:2] >= b"\xe0") or name.lower().endswith(".mp3"):
        return mpeg_layout(file, size)
    return Layout()
