"""Writing a pack, a chunk at a time: atomically (format.py: the layout of the files)."""

import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ...utils.atomic_file import is_temporary, open_atomic, remove_leftovers, write_npz, write_text
from ...utils.errors import UserError
from ...utils.own_files.lock import LockedError, locked
from ...utils.shard import WHOLE, Shard
from ..clip_list import TextColumn
from .format import HEADER_BYTES, MOST_CHUNKS, PackInfo, array_header, chunk_path, info_path, read_info

logger = logging.getLogger("m2d")

_NO_PACK = "{} is there and is no pack: give another name"


class PackedClip(NamedTuple):
    """A clip as it goes into a pack.

    `frames` `[frames, n_mels]` and `features` `[features, E]` in the pack's dtype, with their CRC-32; `valid` of the
    features are no padding.
    """

    frames: np.ndarray
    frames_crc: int
    features: np.ndarray | None = None
    features_crc: int = 0
    valid: int = 0


def pack_clip(lms: np.ndarray, dtype: str, features: np.ndarray | None = None, valid: int = 0) -> PackedClip:
    """Turn a clip `[n_mels, frames]`, and its features `[features, E]`, into what is written.

    Raises:
        ValueError: values are not finite, in this dtype.
    """
    frames = _as_finite(lms.T, dtype)
    if features is None:
        return PackedClip(frames, zlib.crc32(frames.data))
    features = _as_finite(features, dtype)
    return PackedClip(frames, zlib.crc32(frames.data), features, zlib.crc32(features.data), valid)


def _as_finite(values: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # it is reported as an error
        values = np.ascontiguousarray(values, dtype=dtype)
    if not np.isfinite(values).all():
        raise ValueError(f"NaN or infinite values in it (as {dtype})")
    return values


def start_pack(pack: str | Path, info: PackInfo) -> None:
    """Create a pack's folder, or continue the one that is there.

    Raises:
        UserError: it holds something else, or would have too many files.
    """
    if info.chunks > MOST_CHUNKS:
        least = -(-info.clips // MOST_CHUNKS)
        raise UserError(f"{info.chunks} chunks of {info.chunk_clips} clips, at most {MOST_CHUNKS}: --chunk_clips {least} or more")
    folder, path = Path(pack), info_path(pack)
    if folder.exists() and not folder.is_dir():
        raise UserError(_NO_PACK.format(pack))
    folder.mkdir(parents=True, exist_ok=True)
    foreign = [entry for entry in folder.iterdir() if not is_temporary(entry)]
    if not path.is_file():  # looked for after the listing: another packer may have started in between
        if foreign:
            raise UserError(_NO_PACK.format(pack))
        with suppress(FileExistsError):
            write_text(path, info.to_json(), replace=False)
    _check_same(pack, read_info(pack), info)
    remove_leftovers(pack)


def _check_same(pack: str | Path, before: PackInfo, info: PackInfo) -> None:
    differ = [
        f"{name} {getattr(before, name)}, now {getattr(info, name)}"
        for name in info.__struct_fields__
        if getattr(before, name) != getattr(info, name)
    ]
    if differ:
        raise UserError(f"{pack} is a pack of another list or of other settings ({'; '.join(differ)}): give another name")


def discard_outdated(pack: str | Path, info: PackInfo, chunks: Iterable[int], source: Callable[[int], str | Path]) -> None:
    """Take back those of the chunks that are older than a file they were made of.

    Args:
        pack, info: the pack.
        chunks: those to look at.
        source: the path of a clip's file, by its place in the list.
    """
    outdated = []
    for chunk in chunks:
        index = chunk_path(pack, chunk, "index.npz")
        with suppress(OSError):  # not written yet
            written = index.stat().st_mtime_ns
            if any(_changed_since(source(i), written) for i in info.clips_in(chunk)):
                outdated.append(index)
    for index in outdated:
        index.unlink(missing_ok=True)
    if outdated:
        logger.info("%s: %d chunks hold files that have changed since: they are made again", pack, len(outdated))


def _changed_since(path: str | Path, time_ns: int) -> bool:
    try:
        return time_ns < os.stat(path).st_mtime_ns <= time.time_ns()  # a time in the future proves nothing
    except OSError:  # it is reported where it is read
        return False


@contextmanager
def packing(pack: str | Path, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold a pack, or a shard of it, while the block writes its chunks.

    Raises:
        UserError: another process holds it.
    """
    try:
        with locked(Path(pack) / f"packing-{shard.number}-of-{shard.count}.lock"):
            yield
    except LockedError as error:
        raise UserError(f"{pack}: another process is packing ({error.holder})") from None


class ChunkWriter:
    """Takes the clips of one chunk (`write_chunk`)."""

    def __init__(self, info: PackInfo, frames: BinaryIO, features: BinaryIO | None):
        self.frames = _Rows(frames, info.dtype, info.n_mels)
        self.features = _Rows(features, info.dtype, info.feature_width) if features else None
        self.valid: list[int] = []
        self.texts: dict[str, list[str]] = {name: [] for name in info.columns}

    def add(self, clip: PackedClip, texts: Mapping[str, str]) -> None:
        """Append a clip and its row of the list (`file_name`, …)."""
        self.frames.append(clip.frames, clip.frames_crc)
        if self.features:
            self.features.append(clip.features, clip.features_crc)
            self.valid.append(clip.valid)
        for name, column in self.texts.items():
            column.append(texts[name])

    def index(self) -> dict[str, np.ndarray]:
        """What the chunk's index file holds."""
        index = {"lengths": np.array(self.frames.lengths, np.int64), "crc": np.array(self.frames.crcs, np.uint32)}
        if self.features:
            index["feature_lengths"] = np.array(self.features.lengths, np.int64)
            index["feature_crc"] = np.array(self.features.crcs, np.uint32)
            index["valid"] = np.array(self.valid, np.int64)
        for name, texts in self.texts.items():
            column = TextColumn.of(texts)
            index |= {f"{name}.blob": column.blob, f"{name}.offsets": column.offsets}
        return index


@contextmanager
def write_chunk(pack: str | Path, info: PackInfo, chunk: int) -> Iterator[ChunkWriter]:
    """Write chunk `chunk` of a pack: it exists once the block has ended without an error.

    Raises:
        OSError: the disk is full, or the folder is not writable.
        UserError: another process has written the chunk in the meantime; its files stay.
    """
    index = chunk_path(pack, chunk, "index.npz")
    with ExitStack() as files:
        frames = files.enter_context(open_atomic(chunk_path(pack, chunk, "frames.npy")))
        features = None
        if info.feature_width:
            features = files.enter_context(open_atomic(chunk_path(pack, chunk, "features.npy")))
        writer = ChunkWriter(info, frames, features)
        yield writer
        writer.frames.finish()
        if writer.features:
            writer.features.finish()
        if index.exists():
            raise UserError(f"{pack}: another process has written chunk {chunk} meanwhile: give each process a --shard")
    write_npz(index, **writer.index())


class _Rows:
    """A .npy file of rows of one width, whose number is known at its end."""

    def __init__(self, out: BinaryIO, dtype: str, width: int):
        self.out, self.dtype, self.width = out, dtype, width
        self.lengths: list[int] = []
        self.crcs: list[int] = []
        out.write(bytes(HEADER_BYTES))

    def append(self, rows: np.ndarray, crc: int) -> None:
        if rows.shape[1:] != (self.width,) or rows.dtype != self.dtype:
            raise ValueError(f"rows of shape {rows.shape} and type {rows.dtype}, expected (rows, {self.width}) {self.dtype}")
        self.out.write(rows.data)
        self.lengths.append(len(rows))
        self.crcs.append(crc)

    def finish(self) -> None:
        self.out.seek(0)
        self.out.write(array_header((sum(self.lengths), self.width), self.dtype))
