"""Clips that lie in a file each: .npy log-mel spectrograms."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..utils.errors import FileError
from ..utils.read_file import open_regular
from .clip_list import ClipList
from .npy import ArrayHeader, Scratch, check_size, read_columns, read_header
from .rng import choice
from .store import ClipStore, fill_short


class FileStore(ClipStore):
    """A file per clip.

    Args:
        clip_list: the clips.
        data_path: folder that the file names are relative to.
        n_mels: mel bands expected.
    """

    def __init__(self, clip_list: ClipList, data_path: str | Path, n_mels: int = 80):
        self.clip_list, self.data_path, self.n_mels = clip_list, Path(data_path), n_mels
        self.source, self.columns = clip_list.source, clip_list.columns

    def keep(self, clips: np.ndarray) -> None:
        self.clip_list = self.clip_list.take(clips)
        self.columns = self.clip_list.columns

    def where(self, i: int) -> str:
        return f"{self.clip_list.where(i)}: {self.name(i)}"

    def path(self, i: int) -> str:
        """Path of clip i's file."""
        return os.path.join(self.data_path, self.name(i))

    def file_marks(self, indices: np.ndarray) -> str:
        marks = []
        for i in indices.tolist():
            try:
                stat = os.stat(self.path(i))
                marks.append(f"{i}:{stat.st_size}:{stat.st_mtime_ns}")
            except OSError:
                marks.append(f"{i}:missing")
        return " ".join(marks)

    def fingerprint(self, indices: np.ndarray) -> str:
        return f"{self.clip_list.digest()} {self.data_path.resolve()} {self.n_mels} {self.file_marks(indices)}"

    def check_present(self, limit: int = 50_000) -> None:
        """Look whether the files are there: all, or `limit` of them evenly spread over the list.

        Raises:
            FileNotFoundError: some are not; names the first ones, their rows and the count.
        """
        looked_at = np.unique(np.linspace(0, len(self) - 1, min(limit, len(self))).astype(np.int64))
        missing = [i for i in looked_at.tolist() if not os.path.isfile(self.path(i))]
        if missing:
            first = "".join(f"\n  row {self.clip_list.rows[i]}: {self.name(i)}" for i in missing[:5])
            more = "\n  ..." if len(missing) > 5 else ""
            raise FileNotFoundError(
                f"{self.source}: {len(missing)} of the {len(looked_at)} files looked at (the list has {len(self)}) "
                f"are not under {self.data_path} (--data_path):{first}{more}"
            )

    @contextmanager
    def opened(self, i: int) -> Iterator[int]:
        """Clip i's file, open for reading; what goes wrong within is raised again with file and row named."""
        try:
            fd = open_regular(self.path(i))
            try:
                yield fd
            finally:
                os.close(fd)
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.where(i)}: no such file under {self.data_path} (--data_path)") from None
        except (OSError, ValueError) as error:
            raise FileError(f"{self.where(i)}: {error}") from error


class NpyStore(FileStore):
    """One .npy file `[1, n_mels, frames]` per clip, of float32 (or another float type, which is converted)."""

    def read_crops(self, indices: np.ndarray, u: np.ndarray, frames: int, repeat: bool = False) -> np.ndarray:
        crops = np.empty((len(indices), self.n_mels, frames), dtype=np.float32)
        scratch = Scratch()
        for crop, i, place in zip(crops, indices.tolist(), u.tolist(), strict=True):
            with self.opened(i) as fd:
                header = self._header(fd)
                length = header.shape[2]
                start = int(choice(place, length - frames + 1)) if length > frames else 0
                valid = min(length, frames)
                read_columns(fd, header, start, crop[:, :valid], scratch)
                fill_short(crop, valid, repeat)
        return crops

    def read_whole(self, i: int) -> np.ndarray:
        """Clip i, float32 `[n_mels, frames]`."""
        with self.opened(i) as fd:
            header = self._header(fd)
            clip = np.empty(header.shape[1:], dtype=np.float32)
            read_columns(fd, header, 0, clip, Scratch())
        return clip

    def _header(self, fd: int) -> ArrayHeader:
        header = read_header(fd)
        check_shape(header, self.n_mels)
        check_size(fd, header)
        return header


def check_shape(header: ArrayHeader, n_mels: int, name: str = "") -> None:
    """Raise ValueError, saying what it is, where an array (`name` in the message) is no log-mel `[1, n_mels, frames]`."""
    if header.dtype.kind != "f":
        raise ValueError(f"{name}values of type {header.dtype}, expected float32 (or float16)")
    shape = header.shape
    if len(shape) != 3 or shape[0] != 1 or shape[1] != n_mels:
        hint = f": {shape[1]} mel bands where the model takes {n_mels}" if len(shape) == 3 and shape[0] == 1 else ""
        raise ValueError(f"{name}shape {shape}, expected (1, {n_mels}, frames){hint}")
    if shape[2] == 0:
        raise ValueError(f"{name}shape {shape}: no frame in it")
