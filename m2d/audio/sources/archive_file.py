"""An archive as a file that is read from any place: on this machine, or at an address through the cache of remote blocks."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...utils.addresses import check_protocols, is_address, public_name
from ...utils.errors import FileError
from ...utils.names import shown
from ...utils.read_file import open_regular
from ...utils.remote import BlockReader, RemoteFile, RemoteStream, block_cache, look_at

_CUT_SHORT = "is cut short: its archive ends within it"
_looked_at: dict[str, RemoteFile] = {}  # so that each member need not ask again; workers inherit it


class StorageError(Exception):
    """An archive cannot be fetched, or the cache not be written: no fault of what it holds.

    Neither OSError nor ValueError, which the readers of damaged archives catch.
    """


def named(path: str) -> str:
    """An archive's path or address in messages."""
    return shown(public_name(path) if is_address(path) else path)


def open_archive(path: str) -> io.RawIOBase:
    """An archive at its beginning.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file.
        StorageError: it cannot be fetched.
        UserError: fsspec, or what it needs for the address, is not installed.
    """
    if not is_address(path):
        return io.FileIO(open_regular(path))
    check_protocols({path.partition("://")[0].lower()})
    with _as_storage_error():
        file = look_at(path)
    if file is None:
        raise FileNotFoundError(0, "there is no such file")
    _looked_at[path] = file
    return _RemoteArchive(file, BlockReader(block_cache()))


def read_range(path: str, begin: int, size: int) -> bytes:
    """Bytes of an archive.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: there are no such bytes: words that follow a member's name.
        StorageError: they cannot be fetched.
    """
    if not 0 <= begin < 1 << 62:
        raise ValueError("is damaged: its archive gives an invalid position for it")
    if is_address(path):
        return _fetched(path, begin, size)
    descriptor = open_regular(path)
    try:
        blocks = list(_blocks(descriptor, begin, size))
    finally:
        os.close(descriptor)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def _blocks(descriptor: int, begin: int, size: int) -> Iterator[bytes]:
    while size:
        block = os.pread(descriptor, size, begin)
        if not block:
            raise ValueError(_CUT_SHORT)
        yield block
        begin, size = begin + len(block), size - len(block)


def _fetched(path: str, begin: int, size: int) -> bytes:
    if path not in _looked_at:
        open_archive(path).close()
    file = _looked_at[path]
    if begin + size > file.size:
        raise ValueError(_CUT_SHORT)
    content = bytearray(size)
    with _as_storage_error():
        BlockReader(block_cache()).read([(file, begin, memoryview(content))])
    return bytes(content)


class _RemoteArchive(RemoteStream):
    def readinto(self, out: memoryview, /) -> int:  # type: ignore[override]
        with _as_storage_error():
            return super().readinto(out)


@contextmanager
def _as_storage_error() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise StorageError(str(error)) from None
