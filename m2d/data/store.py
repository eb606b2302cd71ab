"""The interface of a store of clips, which .npy files, .npz files and packs share; what is done about bad clips."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..audio.logmel import SILENCE
from ..utils.errors import FileError
from .clip_list import TextColumn

#: Give up after this many consecutive bad clips.
MAX_IN_A_ROW = 100

Read = TypeVar("Read")
Reader = Callable[[np.ndarray, np.ndarray], Read]
_reported: set[str] = set()

logger = logging.getLogger("m2d")


class ClipStore(ABC):
    """The log-mel spectrograms of a list of clips, in the order of the list.

    Attributes:
        source: the CSV, or the pack's folder or address, it was opened from.
        n_mels: mel bands of every clip.
        columns: the list's columns that were read, by name: `file_name`, and `label`, `weight` where asked for.
    """

    source: Path | str
    n_mels: int
    columns: dict[str, TextColumn]

    def __len__(self) -> int:
        return len(self.columns["file_name"])

    def name(self, i: int) -> str:
        """File name of clip i."""
        return self.columns["file_name"][i]

    @abstractmethod
    def keep(self, clips: np.ndarray) -> None:
        """Keep the clips at these places alone, ascending int64 `[n]`."""

    @property
    def parts(self) -> "Sequence[ClipStore]":
        """The stores that it is made of."""
        return [self]

    def spread(self, count: int) -> np.ndarray:
        """Clips, int64 `[count]`, spread over the list as they come in training: evenly, except for lists with weights."""
        return np.arange(count) * len(self) // count

    @abstractmethod
    def where(self, i: int) -> str:
        """Clip i for an error message: "data/x.csv row 17: fsd/17.npy"."""

    @abstractmethod
    def file_marks(self, indices: np.ndarray) -> str:
        """Sizes and times of the files that hold these clips, as a text."""

    @abstractmethod
    def fingerprint(self, indices: np.ndarray) -> str:
        """A text that changes when the list, or the files of these clips, change."""

    @abstractmethod
    def read_crops(self, indices: np.ndarray, u: np.ndarray, frames: int, repeat: bool = False) -> np.ndarray:
        """Crops of `frames` frames.

        Args:
            indices: clips, int64 `[B]`.
            u: where each crop starts among all valid starts, float64 `[B]` in [0, 1); 0 is the clip's start.
            frames: length of a crop.
            repeat: clips shorter than a crop are repeated until long enough; otherwise padded at the end with silence.

        Returns:
            float32 (float16 from a float16 pack) `[B, n_mels, frames]`, in any memory order.

        Raises:
            FileNotFoundError, FileError: a clip cannot be read or has another shape; names file and row.
        """


def fill_short(crop: np.ndarray, valid: int, repeat: bool) -> None:
    """Complete a crop `[n_mels, frames]` of which only the first `valid` frames are written."""
    if not repeat or not valid:
        crop[:, valid:] = SILENCE
        return
    while valid < crop.shape[1]:
        more = min(valid, crop.shape[1] - valid)
        crop[:, valid : valid + more] = crop[:, :more]
        valid += more


def check_finite(store: ClipStore, clips: np.ndarray, values: np.ndarray) -> None:
    """Raise FileError, naming the clip, where one of the values `[B, ...]` of clips `[B]` is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise FileError(f"{store.where(int(clips[bad[0]]))}: NaN or infinite values in it")


def read_replacing(read: Reader, clips: np.ndarray, u: np.ndarray, count: int, replace: bool) -> tuple[Read, int]:
    """Read clips, and the next ones in place of bad ones (--skip_bad_files); also how many were skipped.

    Args:
        read: reads clips `[B]` at places `[B]`; its OSError or ValueError says what is wrong.
        clips: the clips wanted, int64 `[B]`.
        u: where each crop starts, float64 `[B]`.
        count: clips in the list.
        replace: read the next clip of the list in place of one that cannot be read: the same one each time.

    Raises:
        FileError: MAX_IN_A_ROW clips in a row cannot be read.
    """
    try:
        return read(clips, u), 0
    except (OSError, ValueError):
        if not replace:
            raise
    good, skipped = clips.copy(), 0
    for b in range(len(good)):
        good[b], tried = _first_readable(read, int(good[b]), u[b : b + 1], count)
        skipped += tried
    return read(good, u), skipped


def _first_readable(read: Reader, clip: int, u: np.ndarray, count: int) -> tuple[int, int]:
    """The first clip from `clip` on that can be read, and how many were skipped."""
    last: Exception | None = None
    for skipped in range(MAX_IN_A_ROW):
        found = (clip + skipped) % count
        try:
            read(np.array([found]), u)
            return found, skipped
        except (OSError, ValueError) as error:
            last = error
            if str(error) not in _reported:
                _reported.add(str(error))
                logger.error("skipped (--skip_bad_files): %s", error)
    raise FileError(f"{MAX_IN_A_ROW} clips in a row cannot be read, even with --skip_bad_files. The last: {last}") from last
