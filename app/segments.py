"""Labelled stretches of recordings: the list of an application, and the log-mel spectrograms it names."""

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from m2d.data.rng import Purpose, choice, uniform
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
        FileNotFoundError, ValueError: no such list, a column is missing, or a row makes no sense.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such list. The README in app/ tells how to make one")
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


class SegmentDataset(Dataset):
    """Segments as (log-mel float32 `[1, n_mels, frames]`, class index, row).

    In training, `set_epoch` draws where each segment begins; otherwise it begins at its start.

    Args:
        table: rows of one split.
        data_path: folder that the file names are relative to.
        classes: label names, in the order of the class indices.
        frames: length that the model takes.
    """

    def __init__(self, table: pd.DataFrame, data_path: Path, classes: list[str], frames: int):
        self.table, self.data_path, self.frames = table.reset_index(drop=True), data_path, frames
        self.targets = self.table["label"].map({name: i for i, name in enumerate(classes)}).to_numpy()
        self.u = np.zeros(len(table))

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Draw new random starts of the segments for this epoch."""
        self.u = uniform(seed, epoch, np.arange(len(self)), Purpose.CROP)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int, int]:
        name, start, end = self.table.loc[row, ["file_name", "start", "end"]]
        path = self.data_path / name
        lms = np.load(path, mmap_mode="r")
        if lms.ndim != 3 or lms.shape[0] != 1:
            raise ValueError(f"{path}: shape {lms.shape}, expected [1, mels, frames]")
        first = round(start * FRAMES_PER_SECOND)
        stretch = lms[0, :, first : max(first + 1, round(end * FRAMES_PER_SECOND))]
        if stretch.shape[1] == 0:
            raise ValueError(f"{path}: ends before the segment that starts at {start} s")
        fitted = np.ascontiguousarray(fit(stretch, self.frames, self.u[row]), dtype=np.float32)
        return torch.from_numpy(fitted)[None], int(self.targets[row]), row

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation of all values of the segments, as they are cut now."""
        total, squares, count = 0.0, 0.0, 0
        for row in range(len(self)):
            lms = self[row][0].double()
            total, squares, count = total + lms.sum().item(), squares + lms.square().sum().item(), count + lms.numel()
        mean = total / count
        return mean, max(squares / count - mean**2, 1e-12) ** 0.5
