"""Members of a tar (WebDataset's shards are some): found by their headers alone, read as a range of the file."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator

from ...utils.names import shown
from ...utils.read_file import open_regular
from .member import Contents, FileRange, not_readable

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "Zstandard"}
_LONGEST_HEADER = 1 << 20


class _HeaderFile(io.FileIO):
    """A tar of which headers are read, and nothing that is larger."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def tar_contents(path: str, is_audio: Callable[[str], bool]) -> Contents:
    """The audio files of a tar that is not compressed.

    Args:
        path: the tar.
        is_audio: tells by a member's name whether it is wanted.

    Raises:
        OSError: it cannot be opened.
        FileError: it is no tar, or compressed.
    """
    contents = Contents()
    with _HeaderFile(open_regular(path)) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            archive = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")
        except tarfile.TarError as error:
            raise not_readable(shown(path), _what_it_is(path, error)) from None
        for member in _headers(archive, contents):
            name = member.name
            if not is_audio(name):
                continue
            if member.offset_data + member.size > size:
                contents.leave_out(name, "is cut short: its archive ends within it")
            elif member.issparse() or not member.isreg():
                contents.leave_out(name, "is a link or a sparse file, no whole file")
            else:
                contents.add(name, FileRange(path, member.offset_data, member.size), member.size)
    contents.sort()
    return contents


def _headers(archive: tarfile.TarFile, contents: Contents) -> Iterator[tarfile.TarInfo]:
    """The members' headers; of a tar that is damaged those before the damage, which is noted."""
    place = -1
    try:
        while (member := archive.next()) is not None:
            archive.members = []  # tarfile would keep them all
            if member.isdir():
                continue
            if member.size < 0 or archive.offset <= place:
                raise tarfile.ReadError("a header whose size makes no sense")
            place = archive.offset
            yield member
        end = os.pread(archive.fileobj.fileno(), tarfile.BLOCKSIZE, archive.offset)
        if not end.startswith(tarfile.NUL * tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no header" if end.strip(tarfile.NUL) else "no mark of its end")
    except (tarfile.TarError, ValueError, OverflowError) as error:
        contents.leave_out("", f"is damaged or cut short at byte {archive.offset} ({error}): what lies before it is read")


def _what_it_is(path: str, error: tarfile.TarError) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
    kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
    if kind:
        return f"compressed by {kind}, so that no member can be read without all before it: uncompress it to a .tar"
    return f"no tar, or damaged at its beginning ({error})"
