"""Packs at addresses (s3, https and what else fsspec reads)."""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from ...utils.addresses import check_protocols, is_address, public_name, public_reason
from ...utils.errors import FileError
from ...utils.read_file import MOST_JSON_BYTES
from ...utils.remote import AT_ONCE, BlockReader, RemoteFile, RemoteStream, block_cache, look_at, read_whole
from .files import LocalPack, PackFiles, Piece
from .format import PackInfo, chunk_path, info_path, read_info

_COPIED = 8 << 20  # bytes of an index at a time
_INDEX_BYTES, _TEXT_BYTES = 1 << 20, 1 << 16  # of an index without clips; of a clip's text in a column: at most

logger = logging.getLogger("m2d")


class RemotePack(PackFiles):
    """A pack at an address.

    Raises:
        UserError: fsspec, or what it needs for the address, is not installed; M2D_CACHE_GB cannot be used.
    """

    def __init__(self, address: str):
        self._address = address.rstrip("/")
        self.source = self.identity
        check_protocols({address.partition("://")[0].lower()})
        self.cache = block_cache()
        self._reader = BlockReader(self.cache)
        self._files: dict[str, RemoteFile] = {}

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
        try:
            content = read_whole(f"{self._address}/{info_path('')}", MOST_JSON_BYTES)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.source}: no pack (a folder with a pack.json, which m2d pack writes)") from None
        except Exception as error:  # each file system has its own
            raise FileError(f"{self.source} cannot be fetched ({public_reason(error, self._address)})") from error
        if content is None:
            raise FileError(f"{self.source}: its pack.json has more than {MOST_JSON_BYTES >> 20} MiB: not what m2d pack writes")
        return content

    def _fetch_indices(self, folder: Path, info: PackInfo) -> None:
        parts = ["index.npz", "frames.npy", *(["features.npy"] if info.feature_width else [])]
        names = [str(chunk_path("", chunk, part)) for chunk in range(info.chunks) for part in parts]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            looked_at = pool.map(look_at, (f"{self._address}/{name}" for name in names))
            self._files = {name: file for name, file in zip(names, looked_at, strict=True) if file is not None}
        total = sum(file.size for file in self._files.values())
        if total > self.cache.max_bytes:
            logger.warning(
                "%s has %.1f GB, its cache %s at most %.1f: blocks that do not fit are fetched again. Set M2D_CACHE_GB to more",
                self.source,
                total / 1e9,
                self.cache.folder,
                self.cache.max_bytes / 1e9,
            )
        for chunk in range(info.chunks):
            name = str(chunk_path("", chunk, "index.npz"))
            if file := self._files.get(name):
                _check_index_size(file, info, chunk)
                with RemoteStream(file, self._reader) as stream, (folder / name).open("wb") as copy:
                    shutil.copyfileobj(stream, copy, _COPIED)

    def size(self, chunk: int, part: str) -> int:
        file = self._files.get(str(chunk_path("", chunk, part)))
        return file.size if file else 0

    def mark(self, chunk: int) -> str:
        return self._files[str(chunk_path("", chunk, "index.npz"))].key

    def read(self, part: str, pieces: Sequence[Piece], out: Sequence[np.ndarray]) -> None:
        files = {chunk: self._files[str(chunk_path("", chunk, part))] for chunk in {piece.chunk for piece in pieces}}
        self._reader.read(
            [
                (files[chunk], begin, memoryview(crop.reshape(-1).view(np.uint8)))
                for (chunk, begin, size), crop in zip(pieces, out, strict=True)
                if size
            ]
        )

    def open(self, chunk: int, part: str) -> BinaryIO:
        """As `PackFiles.open`, past the cache: a file that is read once would replace what training reads again."""
        return cast(BinaryIO, RemoteStream(self._files[str(chunk_path("", chunk, part))], BlockReader(cache=None)))


def _check_index_size(file: RemoteFile, info: PackInfo, chunk: int) -> None:
    """Refuse an index that is too large for its clips, before it is copied."""
    clips = len(info.clips_in(chunk))
    if file.size > _INDEX_BYTES + clips * (1 + len(info.columns)) * _TEXT_BYTES:
        raise FileError(f"{file.name}: {file.size} bytes for {clips} clips: not what m2d pack writes")


def files_of(pack: str | Path) -> PackFiles:
    """The files of a pack in a folder or at an address.

    Raises:
        As RemotePack.
    """
    return RemotePack(str(pack)) if is_address(pack) else LocalPack(Path(pack))
