"""Files at addresses (s3, https and what else fsspec reads): read in blocks, by ranges, through a cache of bounded size."""

import asyncio
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from .addresses import public_name, public_reason
from .cache import BlockCache, cache_folder
from .errors import FileError, UserError

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from fsspec import AbstractFileSystem
    from fsspec.implementations.http import HTTPFileSystem

BLOCK = 1 << 20  # bytes that are fetched and kept together
AT_ONCE = 32  # blocks
_AHEAD = 16  # blocks that a stream fetches together
_LEAST_BLOCKS = 64  # that the cache holds
_USUAL_GB = 50.0
_ATTEMPTS, _WAIT_SECONDS = 3, 1.0
_MARKS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")


class RemoteFile(NamedTuple):
    """A file as it was when it was looked at; `address` may hold a secret, `key` names this version of it."""

    address: str
    size: int
    key: str

    @property
    def name(self) -> str:
        """The address in messages."""
        return public_name(self.address)


class _Block(NamedTuple):
    file: RemoteFile
    number: int

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return f"{self.file.key}-{self.number}"

    @property
    def begin(self) -> int:
        """Its first byte in the file."""
        return self.number * BLOCK

    @property
    def size(self) -> int:
        """Its bytes: the last block of a file is shorter."""
        return min(BLOCK, self.file.size - self.begin)


class _Wanted(NamedTuple):
    """Bytes of a block that are still to be written to `out`."""

    begin: int
    out: memoryview


def file_system(address: str) -> "tuple[AbstractFileSystem, str]":
    """The file system, which fsspec keeps for each process, and the path of the address in it."""
    from fsspec.core import url_to_fs

    fs, path = url_to_fs(address)
    return fs, path.rstrip("/")


def read_whole(address: str, most: int) -> bytes | None:
    """A file, read as it comes: from web servers without ranges too. None where it has more than `most` bytes.

    Raises:
        Exception: it cannot be read; each file system has its own.
    """
    fs, path = file_system(address)
    options = {"block_size": 0} if _is_web(address) else {}
    content = bytearray()
    with cast(BinaryIO, fs.open(path, "rb", **options)) as file:
        while len(content) <= most and (part := file.read(most + 1 - len(content))):  # a web file gives what has arrived
            content += part
    return bytes(content) if len(content) <= most else None


def look_at(address: str) -> RemoteFile | None:
    """Size and version of a file; None if there is none.

    Raises:
        FileError: it cannot be asked for, or its server does not give its size.
    """
    fs, path = file_system(address)
    try:
        info = fs.info(path)
    except Exception as error:  # each file system has its own; the web's hides the cause in a FileNotFoundError
        cause = error.__cause__ or error
        if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404:
            return None
        raise FileError(f"{public_name(address)} cannot be fetched ({public_reason(cause, address)})") from error
    if not isinstance(info.get("size"), int):
        raise FileError(f"{public_name(address)}: its server does not give its size")
    version = [address, info["size"], *(str(info.get(mark)) for mark in _MARKS)]
    return RemoteFile(address, info["size"], hashlib.sha256(json.dumps(version).encode()).hexdigest()[:32])


def block_cache() -> BlockCache:
    """The blocks of remote files: at most `$M2D_CACHE_GB` (50) GB below `$M2D_CACHE` (~/.cache/m2d).

    Raises:
        UserError: M2D_CACHE_GB is no number, or too small.
    """
    text, least = os.environ.get("M2D_CACHE_GB") or str(_USUAL_GB), _LEAST_BLOCKS * BLOCK
    try:
        size = float(text) * 1e9
    except ValueError:
        size = math.nan
    if not least <= size < math.inf:
        raise UserError(f"M2D_CACHE_GB is {text!r}, expected a number of gigabytes, at least {least / 1e9:.2g}")
    return BlockCache(cache_folder() / "blocks", int(size))


class BlockReader:
    """Reads ranges of remote files: what the cache holds from there, the other blocks together.

    Args:
        cache: where blocks are kept; None: nowhere.
    """

    def __init__(self, cache: BlockCache | None):
        self.cache = cache

    def read(self, ranges: Sequence[tuple[RemoteFile, int, memoryview]]) -> None:
        """Fill buffers with bytes of files from these places on.

        Raises:
            FileError: a file cannot be fetched, or the cache cannot be written.
        """
        missing: dict[_Block, list[_Wanted]] = {}
        for file, begin, out in ranges:
            end = begin + len(out)
            for number in range(begin // BLOCK, -(-end // BLOCK)):
                block = _Block(file, number)
                first, last = max(begin, block.begin), min(end, block.begin + BLOCK)
                wanted = _Wanted(first - block.begin, out[first - begin : last - begin])
                if self.cache is None or not self.cache.read_into(block.key, block.size, *wanted):
                    missing.setdefault(block, []).append(wanted)
        blocks = list(missing)
        for i in range(0, len(blocks), AT_ONCE):
            for block, content in _fetch(blocks[i : i + AT_ONCE]).items():
                if self.cache is not None:
                    self.cache.add(block.key, content)
                for begin, out in missing[block]:
                    out[:] = content[begin : begin + len(out)]


def _fetch(blocks: Sequence[_Block]) -> dict[_Block, bytes]:
    """Blocks that are asked for together and, those that do not come whole, again."""
    got: dict[_Block, bytes] = {}
    failed: dict[_Block, str] = {}
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT_SECONDS * attempt)
        failed.clear()
        left = [block for block in blocks if block not in got]
        for block, answer in zip(left, _ask(left), strict=True):
            if isinstance(answer, Exception):
                failed[block] = public_reason(answer, block.file.address)
            elif len(answer) != block.size:
                failed[block] = f"{len(answer)} bytes came of {block.size}: cut short, or changed since it was opened"
            else:
                got[block] = answer
        if not failed:
            return got
    block, reason = next(iter(failed.items()))
    raise FileError(f"{block.file.name} cannot be fetched ({reason})")


def _ask(blocks: Sequence[_Block]) -> Sequence[bytes | Exception]:
    places = [file_system(block.file.address) for block in blocks]
    try:
        if _is_web(blocks[0].file.address):
            return _ask_web(cast("HTTPFileSystem", places[0][0]), blocks)
        return places[0][0].cat_ranges(
            [path for _, path in places],
            [block.begin for block in blocks],
            [block.begin + block.size for block in blocks],
            on_error="return",
        )
    except Exception as error:  # each file system has its own
        return [error] * len(blocks)


def _is_web(address: str) -> bool:
    return address.lower().startswith(("http://", "https://"))


def _ask_web(fs: "HTTPFileSystem", blocks: Sequence[_Block]) -> list[bytes | Exception]:
    """Blocks of files on the web. fsspec would hold all that a server sends, even the whole file for each block."""
    from fsspec.asyn import sync

    async def ask() -> list[bytes | Exception]:
        session = await fs.set_session()
        return await asyncio.gather(*(_read_web(fs, session, block) for block in blocks))

    return cast(list, sync(fs.loop, ask))


async def _read_web(fs: "HTTPFileSystem", session: "ClientSession", block: _Block) -> bytes | Exception:
    span = f"bytes={block.begin}-{block.begin + block.size - 1}"
    options = {**fs.kwargs, "headers": {**fs.kwargs.get("headers", {}), "Range": span}}
    content = bytearray()
    try:
        async with session.get(fs.encode_url(block.file.address), **options) as reply:
            reply.raise_for_status()
            if reply.status != HTTPStatus.PARTIAL_CONTENT and block.size < block.file.size:
                raise OSError("its server sends the whole file where a part is asked for")
            while len(content) <= block.size and (part := await reply.content.readany()):
                content += part
    except Exception as error:  # of aiohttp, of the system
        return error
    return bytes(content)


class RemoteStream(io.RawIOBase):
    """A remote file as one that is open for reading; some blocks beyond what is read are fetched with it."""

    def __init__(self, file: RemoteFile, reader: BlockReader):
        self._file, self._reader = file, reader
        self._place, self._begin, self._window = 0, 0, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        place = offset + (0, self._place, self._file.size)[whence]
        if place < 0:
            raise ValueError(f"{self._file.name}: a place before its beginning")
        self._place = place
        return place

    def readinto(self, out: memoryview, /) -> int:  # type: ignore[override]
        end = min(self._place + len(out), self._file.size)
        count = max(0, end - self._place)
        if count and not self._begin <= self._place <= end <= self._begin + len(self._window):
            self._fill(end)
        first = self._place - self._begin
        out[:count] = self._window[first : first + count]
        self._place += count
        return count

    def _fill(self, end: int) -> None:
        self._begin = self._place // BLOCK * BLOCK
        window = bytearray(min(max(end, self._begin + _AHEAD * BLOCK), self._file.size) - self._begin)
        self._reader.read([(self._file, self._begin, memoryview(window))])
        self._window = window
