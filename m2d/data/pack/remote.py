"""Packs at addresses (s3, https and what else fsspec reads): read in blocks, by ranges, through a cache of bounded size."""

import hashlib
import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...utils.addresses import check_protocols, public_name, public_reason
from ...utils.cache import BlockCache, cache_folder
from ...utils.errors import FileError, UserError
from .files import PackFiles, Piece
from .format import PackInfo, chunk_path, info_path, read_info

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_BLOCK = 1 << 20  # bytes that are fetched and kept together
_AT_ONCE = 32  # blocks
_LEAST_BLOCKS = 64  # that the cache holds
_USUAL_GB = 50.0
_ATTEMPTS, _WAIT_SECONDS = 3, 1.0
_MARKS = ("ETag", "etag", "LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")

logger = logging.getLogger("m2d")


class _File(NamedTuple):
    """A file of a remote pack; `key`: a name for this version of it."""

    name: str
    size: int
    key: str


class _Block(NamedTuple):
    file: _File
    number: int

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return f"{self.file.key}-{self.number}"

    @property
    def begin(self) -> int:
        """Its first byte in the file."""
        return self.number * _BLOCK

    @property
    def size(self) -> int:
        """Its bytes: the last block of a file is shorter."""
        return min(_BLOCK, self.file.size - self.begin)


class _Wanted(NamedTuple):
    """Bytes of a block that are still to be written to `out`."""

    begin: int
    out: memoryview


def pack_cache() -> BlockCache:
    """The blocks of remote packs: at most `$M2D_CACHE_GB` (50) GB below `$M2D_CACHE` (~/.cache/m2d).

    Raises:
        UserError: M2D_CACHE_GB is no number, or too small.
    """
    text, least = os.environ.get("M2D_CACHE_GB") or str(_USUAL_GB), _LEAST_BLOCKS * _BLOCK
    try:
        size = float(text) * 1e9
    except ValueError:
        size = math.nan
    if not least <= size < math.inf:
        raise UserError(f"M2D_CACHE_GB is {text!r}, expected a number of gigabytes, at least {least / 1e9:.2g}")
    return BlockCache(cache_folder() / "packs", int(size))


class RemotePack(PackFiles):
    """A pack at an address.

    Raises:
        UserError: fsspec, or what it needs for the address, is not installed; M2D_CACHE_GB cannot be used.
    """

    def __init__(self, address: str):
        self._address = address.rstrip("/")
        self.source = self.identity
        check_protocols({address.partition("://")[0].lower()})
        self.cache = pack_cache()
        self._files: dict[str, _File] = {}

    @property
    def identity(self) -> str:
        return public_name(self._address)

    @contextmanager
    def head(self) -> Iterator[Path]:
        """As `PackFiles.head`.

        Raises:
            FileNotFoundError: there is no pack.
            FileError: it cannot be fetched.
        """
        with tempfile.TemporaryDirectory(prefix="m2d-pack-") as name:
            folder = Path(name)
            info_path(folder).write_bytes(self._pack_json())
            try:
                self._fetch_indices(folder, read_info(folder))
                yield folder
            except FileError as error:
                raise FileError(str(error).replace(name, self.source)) from error

    def _pack_json(self) -> bytes:
        fs, root = self._open()
        try:
            return bytes(fs.cat_file(f"{root}/{info_path('')}"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.source}: no pack (a folder with a pack.json, which m2d pack writes)") from None
        except Exception as error:  # each file system has its own
            raise FileError(f"{self.source} cannot be fetched ({public_reason(error, self._address)})") from error

    def _fetch_indices(self, folder: Path, info: PackInfo) -> None:
        parts = ["index.npz", "frames.npy", *(["features.npy"] if info.feature_width else [])]
        names = [str(chunk_path("", chunk, part)) for chunk in range(info.chunks) for part in parts]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = [file for file in pool.map(self._look, names) if file is not None]
        self._files = {file.name: file for file in found}
        total = sum(file.size for file in found)
        if total > self.cache.max_bytes:
            logger.warning(
                "%s has %.1f GB, its cache %s at most %.1f: blocks that do not fit are fetched again. Set M2D_CACHE_GB to more",
                self.source,
                total / 1e9,
                self.cache.folder,
                self.cache.max_bytes / 1e9,
            )
        for file in found:
            if file.name.endswith("index.npz"):
                self._copy(file, folder / file.name)

    def _look(self, name: str) -> _File | None:
        """Size and version of a file; None if there is none."""
        fs, root = self._open()
        try:
            info = fs.info(f"{root}/{name}")
        except Exception as error:  # each file system has its own; the web's hides the cause in a FileNotFoundError
            cause = error.__cause__ or error
            if isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) == 404:
                return None
            raise FileError(f"{self.source}/{name} cannot be fetched ({public_reason(cause, self._address)})") from error
        if not isinstance(info.get("size"), int):
            raise FileError(f"{self.source}/{name}: its server does not tell its size")
        version = [self._address, name, info["size"], *(str(info.get(mark)) for mark in _MARKS)]
        return _File(name, info["size"], hashlib.sha256(json.dumps(version).encode()).hexdigest()[:32])

    def _copy(self, file: _File, target: Path) -> None:
        buffer = np.empty(_AT_ONCE * _BLOCK, np.uint8)
        with target.open("wb") as out:
            for begin in range(0, file.size, len(buffer)):
                piece = buffer[: file.size - begin]
                self._read([(file, begin, memoryview(piece))])
                out.write(piece)

    def size(self, chunk: int, part: str) -> int:
        file = self._files.get(str(chunk_path("", chunk, part)))
        return file.size if file else 0

    def mark(self, chunk: int) -> str:
        return self._files[str(chunk_path("", chunk, "index.npz"))].key

    def read(self, part: str, pieces: Sequence[Piece], out: Sequence[np.ndarray]) -> None:
        files = {chunk: self._files[str(chunk_path("", chunk, part))] for chunk in {piece.chunk for piece in pieces}}
        self._read(
            [
                (files[chunk], begin, memoryview(crop.reshape(-1).view(np.uint8)))
                for (chunk, begin, size), crop in zip(pieces, out, strict=True)
                if size
            ]
        )

    def _read(self, ranges: Sequence[tuple[_File, int, memoryview]]) -> None:
        """Fill buffers with bytes of files from these places on: from the cache, the others fetched together."""
        missing: dict[_Block, list[_Wanted]] = {}
        for file, begin, out in ranges:
            end = begin + len(out)
            for number in range(begin // _BLOCK, -(-end // _BLOCK)):
                block = _Block(file, number)
                first, last = max(begin, block.begin), min(end, block.begin + _BLOCK)
                wanted = _Wanted(first - block.begin, out[first - begin : last - begin])
                if not self.cache.read_into(block.key, block.size, *wanted):
                    missing.setdefault(block, []).append(wanted)
        blocks = list(missing)
        for i in range(0, len(blocks), _AT_ONCE):
            for block, content in self._fetch(blocks[i : i + _AT_ONCE]).items():
                self.cache.add(block.key, content)
                for begin, out in missing[block]:
                    out[:] = content[begin : begin + len(out)]

    def _fetch(self, blocks: Sequence[_Block]) -> dict[_Block, bytes]:
        """Blocks that are asked for together and, those that do not come whole, again."""
        got: dict[_Block, bytes] = {}
        failed: dict[_Block, str] = {}
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_WAIT_SECONDS * attempt)
            failed.clear()
            left = [block for block in blocks if block not in got]
            for block, answer in zip(left, self._ask(left), strict=True):
                if isinstance(answer, Exception):
                    failed[block] = public_reason(answer, self._address)
                elif len(answer) != block.size:
                    failed[block] = f"{len(answer)} bytes came of {block.size}: cut short, or changed since it was opened"
                else:
                    got[block] = answer
            if not failed:
                return got
        block, reason = next(iter(failed.items()))
        raise FileError(f"{self.source}/{block.file.name} cannot be fetched ({reason})")

    def _ask(self, blocks: Sequence[_Block]) -> Sequence[bytes | Exception]:
        fs, root = self._open()
        try:
            return fs.cat_ranges(
                [f"{root}/{block.file.name}" for block in blocks],
                [block.begin for block in blocks],
                [block.begin + block.size for block in blocks],
                on_error="return",
            )
        except Exception as error:  # each file system has its own
            return [error] * len(blocks)

    def _open(self) -> "tuple[AbstractFileSystem, str]":
        """The file system, which fsspec keeps for each process, and the pack's path in it."""
        from fsspec.core import url_to_fs

        fs, root = url_to_fs(self._address)
        return fs, root.rstrip("/")
