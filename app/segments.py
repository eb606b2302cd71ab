"""Labelled stretches of recordings: the list of an application, and the log-mel spectrograms it names."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from m2d.data.rng import choice
from m2d.finetune.clips import FineTuneSet
from m2d.utils import atomic_file
from wav_to_lms import convert_wav

logger = logging.getLogger("m2d")

COLUMNS = ("file_name", "start", "end", "label", "split", "unit")
SPLITS = ("train", "valid", "test")
FRAMES_PER_SECOND = 100


def convert_recordings(recordings: Path, lms: Path, names: Iterable[str]) -> set[str]:
    """Convert a folder of recordings (.wav) to log-mel spectrograms.

    Returns:
        those of `names` (paths below the folder, without suffix) that there are spectrograms of; the others are named.
    """
    convert_wav(str(recordings), str(lms))
    names = set(names)
    there = {name for name in names if (lms / f"{name}.npy").is_file()}
    for name in sorted(names - there)[:5]:
        logger.warning("%s: no recording %s.wav, or it could not be converted: left out", recordings, name)
    if not there:
        raise ValueError(f"{recordings}: none of the {len(names)} annotated recordings could be converted")
    return there


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_file.write_csv(path, table.columns, table.itertuples(index=False))


def write_segments(table: pd.DataFrame, path: Path) -> None:
    """Write a list of segments."""
    if table.empty:
        raise ValueError(f"{path}: no segment is left to list")
    write_csv(table[list(COLUMNS)], path)
    counts = table.groupby(["split", "label"]).size().unstack(fill_value=0)
    logger.info("%s: %d segments\n%s", path, len(table), counts.to_string())


def write_pretraining_list(files: Iterable[str], path: Path) -> None:
    """Write a list of spectrograms for further pre-training."""
    files = sorted(set(files))
    write_csv(pd.DataFrame({"file_name": files}), path)
    logger.info("%s: %d files for further pre-training", path, len(files))


def relative_to_list(lms: Path, to_list: Path) -> str:
    """The spectrograms' folder as a list names it: relative to the list's own folder."""
    try:
        return lms.resolve().relative_to(to_list.parent.resolve()).as_posix()
    except ValueError:
        raise ValueError(f"--lms {lms} must lie below the folder of the lists, {to_list.parent}") from None


def read_segments(path: Path) -> pd.DataFrame:
    """Read a list of segments.

    Returns:
        columns file_name; start and end in seconds; label; split (train, valid, test); unit, what is scored as one.

    Raises:
        FileNotFoundError, ValueError: no such list, a column is missing, or a row is invalid.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such list. The README in app/ says how to make one")
    table = pd.read_csv(path, dtype={"label": str, "unit": str, "file_name": str, "split": str}, keep_default_na=False)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    for column, bad in {"split": ~table["split"].isin(SPLITS), "end": ~(table["end"] > table["start"])}.items():
        if bad.any():
            row = bad.idxmax()
            raise ValueError(f"{path} row {row + 2}: {column} is {table[column][row]}: expected {_expected(column)}")
    for split in ("train", "test"):
        if not (table["split"] == split).any():
            raise ValueError(f"{path}: no row of the split '{split}'")
    return table


def _expected(column: str) -> str:
    return f"one of {', '.join(SPLITS)}" if column == "split" else "more than start"


def fit(lms: np.ndarray, frames: int, u: float) -> np.ndarray:
    """A stretch `[n_mels, length]` made `frames` long: cropped, or repeated until it is; u in [0, 1) says where it begins."""
    length = lms.shape[1]
    if length >= frames:
        start = int(choice(np.float64(u), np.int64(length - frames + 1)))
        return lms[:, start : start + frames]
    start = int(u * length)
    return np.take(lms, np.arange(start, start + frames) % length, axis=1)


class SegmentDataset(FineTuneSet):
    """Segments to fine-tune on: in training each begins at a random place, otherwise at its start.

    Args:
        table: rows of one split.
        data_path: folder that the file names are relative to.
        classes: label names, in the order of the class indices.
        frames: length that the model takes.
    """

    def __init__(self, table: pd.DataFrame, data_path: Path, classes: list[str], frames: int):
        self.table = table.reset_index(drop=True)
        targets = self.table["label"].to_numpy()[:, None] == np.array(classes)
        super().__init__([data_path / name for name in self.table["file_name"]], targets, len(classes), "16k", frames, 1)

    def read(self, row: int) -> np.ndarray:
        """The log-mel of a segment, float32 `[n_mels, its frames]`.

        Raises:
            OSError, ValueError: there is no such segment; names the file.
        """
        path, start, end = self.paths[row], self.table["start"][row], self.table["end"][row]
        lms = np.load(path, mmap_mode="r")
        if lms.ndim != 3 or lms.shape[0] != 1:
            raise ValueError(f"{path}: shape {lms.shape}, expected [1, mels, frames]")
        first = round(start * FRAMES_PER_SECOND)
        stretch = lms[0, :, first : max(first + 1, round(end * FRAMES_PER_SECOND))]
        if stretch.shape[1] == 0:
            raise ValueError(f"{path}: ends before the segment that starts at {start} s")
        return np.array(stretch, dtype=np.float32)

    def crop(self, row: int, place: float) -> tuple[np.ndarray, np.ndarray, int]:
        """A segment made as long as the model's input: cropped, or repeated until it is."""
        return fit(self.read(row), self.frames, place), self.targets[row], self.frames

    def stretches(self, row: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """A segment from its start, made as long as the model's input."""
        yield self.crop(row, 0.0)

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of all values of the segments, from their starts."""
        total, squares, count = 0.0, 0.0, 0
        for row in range(len(self)):
            lms = self.crop(row, 0.0)[0].astype(np.float64)
            total, squares, count = total + lms.sum(), squares + np.square(lms).sum(), count + lms.size
        mean = total / count
        return mean, max(squares / count - mean**2, 1e-12) ** 0.5
