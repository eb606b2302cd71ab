"""What a store of clips is: the interface behind which .npy files, .npz files and packs look alike."""

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from ..audio.logmel import SILENCE
from ..utils.errors import FileError
from .clip_list import TextColumn


class ClipStore(ABC):
    """The log-mel spectrograms of a list of clips, in the order of the list.

    Attributes:
        source: the CSV (or pack) it was opened from.
        n_mels: mel bands of every clip.
        columns: the list's columns that were read, by name: `file_name`, and `label`, `weight` where asked for.
    """

    source: Path
    n_mels: int
    columns: dict[str, TextColumn]

    def __len__(self) -> int:
        return len(self.columns["file_name"])

    def name(self, i: int) -> str:
        """File name of clip i."""
        return self.columns["file_name"][i]

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
            FileNotFoundError, ValueError: a clip cannot be read or has another shape; names file and row.
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
    """Raise ValueError, naming the clip, where one of the values `[B, ...]` of clips `[B]` is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise FileError(f"{store.where(int(clips[bad[0]]))}: NaN or infinite values in it")
