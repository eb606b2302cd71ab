"""Clips of a pack: crops that are one contiguous read each (format.py: the layout of the files)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import FileError
from ..clip_list import TextColumn
from ..feature_store import FRAMES_PER_FEATURE, FeatureStore, aligned_start
from ..rng import choice
from ..store import ClipStore, fill_short
from .files import PackFiles, Piece
from .format import HEADER_BYTES, chunk_path, missing_chunks, read_info
from .index import read_index, text_column
from .remote import files_of


class PackedArray:
    """The rows of one array of a pack, over its chunks.

    Args:
        files: the pack's files.
        part: file of each chunk.
        dtype: of the values.
        width: values per row.
        lengths: rows of each clip, int64 `[chunk clips]`, per chunk.

    Raises:
        FileError: a file is cut short or has been changed.
    """

    def __init__(self, files: PackFiles, part: str, dtype: str, width: int, lengths: Sequence[np.ndarray]):
        self.files, self.part, self.dtype, self.width = files, part, np.dtype(dtype), width
        self.row_bytes = width * self.dtype.itemsize
        self.chunk_of = np.repeat(np.arange(len(lengths), dtype=np.int32), [len(each) for each in lengths])
        self.begins = np.concatenate([np.cumsum(each) - each for each in lengths])
        self.lengths = np.concatenate(lengths)
        for chunk, each in enumerate(lengths):
            self._check_size(chunk, HEADER_BYTES + int(each.sum()) * self.row_bytes)

    def _check_size(self, chunk: int, needs: int) -> None:
        has = self.files.size(chunk, self.part)
        if has != needs:
            raise FileError(
                f"{self.files.where(chunk, self.part)}: {has} bytes, its index says {needs}: cut short or of another pack. "
                f"Remove {chunk_path('', chunk, '*')} and pack the list again"
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
        sizes = valid * self.row_bytes
        pieces = [Piece(*each) for each in zip(self.chunk_of[clips].tolist(), at.tolist(), sizes.tolist(), strict=True)]
        self.files.read(self.part, pieces, [crop[:count] for crop, count in zip(out, valid.tolist(), strict=True)])
        return out, valid


class PackStore(ClipStore):
    """The clips of a pack.

    Args:
        path: the pack's folder or address.
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
        self.files = files_of(path)
        self.source, self.n_mels = self.files.source, n_mels
        with self.files.head() as folder:
            self.info = read_info(folder)
            self._check_info(folder, columns)
            index = [read_index(folder, self.info, chunk) for chunk in range(self.info.chunks)]
        wanted = [name for name in self.info.columns if name in (*columns, *optional)]
        self.columns = {name: TextColumn.join([text_column(each, name) for each in index]) for name in wanted}
        if not len(self):
            raise FileError(f"{self.source}: there is no clip in it: none of its files could be read")
        self.order = self.columns["file_name"].argsort() if sort else np.arange(len(self))
        self.columns = {name: column.take(self.order) for name, column in self.columns.items()}
        lengths = [each["lengths"] for each in index]
        self.frames = PackedArray(self.files, "frames.npy", self.info.dtype, n_mels, lengths)
        self.frames.take(self.order)
        self._take_features(index)

    def _check_info(self, folder: Path, columns: Sequence[str]) -> None:
        missing = missing_chunks(folder, self.info)
        if missing:
            raise FileError(
                f"{self.source}: {len(missing)} of its {self.info.chunks} chunks are not there (the first is {missing[0]}): "
                "run m2d pack again to write the missing ones"
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
        return " ".join(self.files.mark(chunk) for chunk in range(self.info.chunks))

    def fingerprint(self, indices: np.ndarray) -> str:
        places = self.order[indices].tolist()
        return f"{self.info.to_json()} {self.files.identity} {places} {self.file_marks(indices)}"

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
        path: the pack's folder or address.
        n_mels: mel bands expected.
        patch_frames: frames that a patch spans.

    Raises:
        FileError: as PackStore, or the pack has no features.
    """

    def __init__(self, path: str | Path, n_mels: int = 80, patch_frames: int = 4):
        self.patch_frames = patch_frames
        super().__init__(path, n_mels)

    def _check_info(self, folder: Path, columns: Sequence[str]) -> None:
        super()._check_info(folder, columns)
        if not self.info.feature_width:
            raise FileError(f"{self.source}: no features in it: pack a list of .npz files (speech/extract_offline_ls960.py)")

    def _take_features(self, index: list[dict[str, np.ndarray]]) -> None:
        self.feature_width = self.info.feature_width
        lengths = [each["feature_lengths"] for each in index]
        self.features = PackedArray(self.files, "features.npy", self.info.dtype, self.feature_width, lengths)
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
