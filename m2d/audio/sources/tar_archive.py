"""Members of a tar (WebDataset's shards are some): found by their headers alone, read as a range of the file."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, cast

from .archive_file import open_archive
from .member import Contents, FileRange, not_readable

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_LONGEST_HEADER = 1 << 20


class _HeaderFile:
    """A tar of which headers are read, and nothing that is larger."""

    def __init__(self, file: io.RawIOBase):
        self.size = file.seek(0, os.SEEK_END)
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self.seek(0)

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._read(size) or b""


def tar_contents(path: str, is_audio: Callable[[str], bool]) -> Contents:
    """The audio files of a tar that is not compressed.

    Args:
        path: the tar.
        is_audio: tells by a member's name whether it is wanted.

    Raises:
        OSError: it cannot be opened.
        StorageError: it cannot be fetched.
        FileError: it is no tar, or compressed.
    """
    contents = Contents()
    with open_archive(path) as opened:
        file = _HeaderFile(opened)
        try:
            archive = tarfile.open(fileobj=cast(IO[bytes], file), mode="r:", encoding="utf-8")
        except tarfile.TarError as error:
            raise not_readable(path, _what_it_is(opened, error)) from None
        for member in _headers(archive, file, contents):
            name = member.name
            if not is_audio(name):
                continue
            if member.offset_data + member.size > file.size:
                contents.leave_out(name, "is cut short: its archive ends within it")
            elif member.issparse() or not member.isreg():
                contents.leave_out(name, "is a link or a sparse file, no whole file")
            else:
                contents.add(name, FileRange(path, member.offset_data, member.size), member.size)
    contents.sort()
    return contents


def _headers(archive: tarfile.TarFile, file: _HeaderFile, contents: Contents) -> Iterator[tarfile.TarInfo]:
    """The members' headers; of a tar that is damaged those before the damage, which is noted."""
    place = -1
    try:
        while (member := archive.next()) is not None:
            archive.members = []  # tarfile would keep them all
            if member.isdir():
                continue
            if member.size < 0 or archive.offset <= place:
                raise tarfile.ReadError("a header with an invalid size")
            place = archive.offset
            yield member
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
        if not end.startswith(tarfile.NUL * tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no header" if end.strip(tarfile.NUL) else "no mark of its end")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        contents.leave_out("", f"is damaged or cut short at byte {archive.offset} ({error}): what lies before it is read")


def _what_it_is(file: io.RawIOBase, error: tarfile.TarError) -> str:
    file.seek(0)
    head = file.read(8) or b""
    kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
    if kind:
        return f"compressed by {kind}, so that no member can be read without all before it: uncompress it to a .tar"
    return f"no tar, or damaged at its beginning ({error})"
