"""Members of a zip archive, stored or deflated: found by its directory, each read alone."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

from ...utils.read_file import ZIP_ERRORS
from .archive_file import open_archive, read_range
from .member import Contents, not_readable

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
_MOST_DIRECTORY_BYTES = 1 << 30  # of some ten million members


class _DirectoryFile(io.BufferedReader):
    """A zip archive of which zipfile reads the directory, in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MOST_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size >> 20} MiB, at most {_MOST_DIRECTORY_BYTES >> 20} are read")
        return super().read(size)


class ZipMember(NamedTuple):
    """A member of a zip archive, as its directory describes it: nothing more is unpacked than it says."""

    path: str
    header: int
    packed_size: int
    size: int
    crc: int
    is_deflated: bool

    in_turn = False

    def read(self) -> bytes:
        """As `Place.read`."""
        magic, name_size, extra_size = _LOCAL_HEADER.unpack(read_range(self.path, self.header, _LOCAL_HEADER.size))
        if magic != b"PK\x03\x04":
            raise ValueError("is damaged: its archive has something else at its place")
        content = read_range(self.path, self.header + _LOCAL_HEADER.size + name_size + extra_size, self.packed_size)
        if self.is_deflated:
            content = self._inflated(content)
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError("is damaged: its size or checksum is not that of its archive's directory")
        return content

    def _inflated(self, content: bytes) -> bytes:
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, self.size + 1)
        except zlib.error as error:
            raise ValueError(f"is damaged: {error}") from None


def zip_contents(path: str, is_audio: Callable[[str], bool]) -> Contents:
    """The audio files of a zip archive.

    Args:
        path: the archive.
        is_audio: tells by a member's name whether it is wanted.

    Raises:
        OSError: it cannot be opened.
        StorageError: it cannot be fetched.
        FileError: it is no zip archive, or its directory, which lies at its end, is damaged.
    """
    contents = Contents()
    with open_archive(path) as file:
        try:
            members = zipfile.ZipFile(_DirectoryFile(file)).infolist()
        except ZIP_ERRORS as error:
            raise not_readable(path, f"no zip archive, or damaged, or cut short ({error})") from None
    for member in members:
        name, method = member.filename, member.compress_type
        if member.is_dir() or not is_audio(name):
            continue
        if member.flag_bits & _ENCRYPTED:
            contents.leave_out(name, "is encrypted")
        elif method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            contents.leave_out(name, "is compressed by another method than deflate: unpack it")
        else:
            deflated = method == zipfile.ZIP_DEFLATED
            place = ZipMember(path, member.header_offset, member.compress_size, member.file_size, member.CRC, deflated)
            contents.add(name, place, max(member.file_size, member.compress_size))
    contents.sort()
    return contents
