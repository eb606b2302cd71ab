"""Clips of a pack: crops that are one contiguous read each (format.py: the layout of the files)."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import FileError
from ...utils.read_file import open_regular
from ..clip_list import TextColumn
from ..feature_store import FRAMES_PER_FEATURE, FeatureStore, aligned_start
from ..rng import choice
from ..store import ClipStore, fill_short
from .format import HEADER_BYTES, chunk_path, missing_chunks, read_info
from .index import read_index, text_column


class PackedArray:
    """The rows of one array of a pack, over its chunks.

    Args:
        pack: the pack's folder.
        part: file of each chunk.
        dtype: of the values.
        width: values per row.
        lengths: rows of each clip, int64 `[chunk clips]`, per chunk.

    Raises:
        FileError: a file is cut short or has been changed.
    """

    def __init__(self, pack: Path, part: str, dtype: str, width: int, lengths: Sequence[np.ndarray]):
        self.pack, self.part, self.dtype, self.width = pack, part, np.dtype(dtype), width
        self.row_bytes = width * self.dtype.itemsize
        self.chunk_of = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(each) for each in lengths])
        self.begins = np.concatenate([np.cumsum(each) - each for each in lengths])
        self.lengths = np.concatenate(lengths)
        self._open: dict[int, int] = {}
        for chunk, each in enumerate(lengths):
            self._check_size(chunk_path(pack, chunk, part), HEADER_BYTES + int(each.sum()) * self.row_bytes)

    def _check_size(self, path: Path, needs: int) -> None:
        has = path.stat().st_size if path.is_file() else 0
        if has != needs:
            raise FileError(
                f"{path}: {has} bytes, its index says {needs}: cut short or of another pack. "
                f"Remove {path.name.split('.')[0]}.* and pack the list again"
            )

    def take(self, order: np.ndarray) -> None:
        """Put the clips into another order."""
        self.chunk_of, self.begins, self.lengths = self.chunk_of[order], self.begins[order], self.lengths[order]

    def read(self, clips: np.ndarray, starts: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Up to `rows` rows of each clip.

        Args:
            clips, starts: clips and their first rows, int64 `[B]`.

        Returns:
            `[B, rows, width]`; how many rows of each are written `[B]`, the others being of any content.
        """
        out = np.empty((len(clips), rows, self.width), dtype=self.dtype)
        valid = np.clip(self.lengths[clips] - starts, 0, rows)
        at = HEADER_BYTES + (self.begins[clips] + starts) * self.row_bytes
        pieces = list(zip(self.chunk_of[clips].tolist(), at.tolist(), (valid * self.row_bytes).tolist(), strict=True))
        if hasattr(os, "posix_fadvise"):  # so that the disk works on the whole batch at once
            for chunk, begin, size in pieces:
                os.posix_fadvise(self._fd(chunk), begin, size, os.POSIX_FADV_WILLNEED)
        for crop, count, (chunk, begin, size) in zip(out, valid.tolist(), pieces, strict=True):
            if os.preadv(self._fd(chunk), [crop[:count]], begin) != size:
                raise FileError(f"{chunk_path(self.pack, chunk, self.part)}: the file ended while it was read")
        return out, valid

    def _fd(self, chunk: int) -> int:
        if chunk not in self._open:
            opened = open_regular(chunk_path(self.pack, chunk, self.part))
            if self._open.setdefault(chunk, opened) != opened:  # another thread was faster
                os.close(opened)
        return self._open[chunk]

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": {}}

    def __del__(self) -> None:
        self.close()


class PackStore(ClipStore):
    """The clips of a pack.

    Args:
        path: the pack's folder.
        n_mels: mel bands expected.
        sort: order the clips by file name; otherwise keep the order of the list that was packed.
        columns, optional: columns that the pack must have, and may have.

    Raises:
        FileError: chunks, columns or clips are missing, the pack is damaged, or has other mel bands.
    """

    def __init__(
        self,
        path: str | Path,
        n_mels: int = 80,
        sort: bool = True,
        columns: Sequence[str] = ("file_name",),
        optional: Sequence[str] = (),
    ):
        self.source, self.n_mels = Path(path), n_mels
        self.info = read_info(path)
        self._check_info(columns)
        index = [read_index(path, self.info, chunk) for chunk in range(self.info.chunks)]
        wanted = [name for name in self.info.columns if name in (*columns, *optional)]
        self.columns = {name: TextColumn.join([text_column(each, name) for each in index]) for name in wanted}
        if not len(self):
            raise FileError(f"{path}: there is no clip in it: none of its files could be read")
        self.order = self.columns["file_name"].argsort() if sort else np.arange(len(self))
        self.columns = {name: column.take(self.order) for name, column in self.columns.items()}
        lengths = [each["lengths"] for each in index]
        self.frames = PackedArray(self.source, "frames.npy", self.info.dtype, n_mels, lengths)
        self.frames.take(self.order)
        self._take_features(index)

    def _check_info(self, columns: Sequence[str]) -> None:
        missing = missing_chunks(self.source, self.info)
        if missing:
            raise FileError(
                f"{self.source}: {len(missing)} of its {self.info.chunks} chunks are not there (the first is {missing[0]}): "
                "run m2d pack again, which writes those that are missing"
            )
        if self.info.n_mels != self.n_mels:
            raise FileError(f"{self.source}: {self.info.n_mels} mel bands where the model takes {self.n_mels}")
        missing = [name for name in columns if name not in self.info.columns]
        if missing:
            raise FileError(
                f"{self.source}: no column {', '.join(missing)} (its columns: {', '.join(self.info.columns)}): "
                "pack a list that has it"
            )

    def _take_features(self, index: list[dict[str, np.ndarray]]) -> None:
        """For a store of features."""

    def keep(self, clips: np.ndarray) -> None:
        self.order = self.order[clips]
        self.columns = {name: column.take(clips) for name, column in self.columns.items()}
        self.frames.take(clips)

    def where(self, i: int) -> str:
        return f"{self.source} clip {self.order[i] + 1}: {self.name(i)}"

    def file_marks(self, indices: np.ndarray) -> str:
        marks = [chunk_path(self.source, k, "index.npz").stat() for k in range(self.info.chunks)]
        return " ".join(f"{mark.st_size}:{mark.st_mtime_ns}" for mark in marks)

    def fingerprint(self, indices: np.ndarray) -> str:
        places = self.order[indices].tolist()
        return f"{self.info.to_json()} {self.source.resolve()} {places} {self.file_marks(indices)}"

    def starts(self, indices: np.ndarray, u: np.ndarray, frames: int) -> np.ndarray:
        """First frames of crops, int64 `[B]`."""
        return choice(u, np.maximum(self.frames.lengths[indices] - frames, 0) + 1)

    def read_crops(self, indices: np.ndarray, u: np.ndarray, frames: int, repeat: bool = False) -> np.ndarray:
        return self._read_frames(indices, self.starts(indices, u, frames), frames, repeat)

    def _read_frames(self, indices: np.ndarray, starts: np.ndarray, frames: int, repeat: bool) -> np.ndarray:
        crops, valid = self.frames.read(indices, starts, frames)
        crops = crops.transpose(0, 2, 1)
        for b in np.flatnonzero(valid < frames):
            fill_short(crops[b], int(valid[b]), repeat)
        return crops


class PackFeatureStore(PackStore, FeatureStore):
    """The speech clips of a pack and their features, sorted by file name.

    Args:
        path: the pack's folder.
        n_mels: mel bands expected.
        patch_frames: frames that a patch spans.

    Raises:
        FileError: as PackStore, or the pack has no features.
    """

    def __init__(self, path: str | Path, n_mels: int = 80, patch_frames: int = 4):
        self.patch_frames = patch_frames
        super().__init__(path, n_mels)

    def _check_info(self, columns: Sequence[str]) -> None:
        super()._check_info(columns)
        if not self.info.feature_width:
            raise FileError(f"{self.source}: no features in it: pack a list of .npz files (speech/extract_offline_ls960.py)")

    def _take_features(self, index: list[dict[str, np.ndarray]]) -> None:
        self.feature_width = self.info.feature_width
        lengths = [each["feature_lengths"] for each in index]
        self.features = PackedArray(self.source, "features.npy", self.info.dtype, self.feature_width, lengths)
        self.features.take(self.order)
        self.valid = np.concatenate([each["valid"] for each in index])[self.order]

    def keep(self, clips: np.ndarray) -> None:
        super().keep(clips)
        self.features.take(clips)
        self.valid = self.valid[clips]

    def starts(self, indices: np.ndarray, u: np.ndarray, frames: int) -> np.ndarray:
        return aligned_start(u, self.valid[indices], frames, self.patch_frames)

    def read_with_features(self, indices: np.ndarray, u: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
        starts = self.starts(indices, u, frames)
        crops = self._read_frames(indices, starts, frames, repeat=False)
        features, valid = self.features.read(indices, starts // FRAMES_PER_FEATURE, frames // FRAMES_PER_FEATURE)
        for b in np.flatnonzero(valid < features.shape[1]):
            features[b, valid[b] :] = 0
        return crops, features
