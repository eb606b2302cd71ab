"""What is fine-tuned on: labelled clips, or recordings with events, as log-mels of the model's input length."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import GroupShuffleSplit, StratifiedKFold

from ..audio.decode import read_audio
from ..audio.logmel import PRESETS, SILENCE, NumpyLogMel
from ..data.rng import Purpose, choice, uniform
from ..data.sampler import SampleKey
from ..evaluation.labelled_clips import LabelledClips, require_splits, some_names
from ..utils.errors import ReadError, UserError
from ..utils.names import counted, shown
from ..utils.parallel import Progress, map_ahead
from ..utils.program import explained

logger = logging.getLogger("m2d")

_VALIDATION_SHARE = 0.2
_MOST_UNREADABLE = 0.1  # share of the clips that may be left out
_INAUDIBLE = 1e-3  # above the log-mel of silence
_TOLERATED = 0.1  # s: annotations are not more exact
_MOMENT = 1e-6  # s: times are not compared more closely


@dataclass(frozen=True)
class Batch:
    """A batch of stretches of clips.

    Attributes:
        lms: log-mels `[B, 1, bands, frames]`, padded with silence.
        targets: `[B, C]`, or `[B, T, C]` for events.
        frames: how many frames are the clip's, `[B]`.
        rows: the clip of each stretch.
    """

    lms: torch.Tensor
    targets: torch.Tensor
    frames: np.ndarray
    rows: list[int]


@dataclass(frozen=True)
class Events:
    """Which classes sound when, in one recording: rows (onset s, offset s, class)."""

    spans: np.ndarray

    def targets(self, starts: np.ndarray, seconds: float, classes: int) -> np.ndarray:
        """1 for each class that sounds within a time step: float32 `[T, classes]`.

        Args:
            starts: when the steps start, in s, `[T]`.
            seconds: how long a step is.
        """
        out = np.zeros((len(starts), classes), np.float32)
        for onset, offset, name in self.spans:
            out[(starts + _MOMENT < offset) & (starts + seconds > onset + _MOMENT), int(name)] = 1
        return out


def split_clips(clips: LabelledClips, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to validate on: by the list's column split, else whole groups drawn at random.

    Where each clip is a group of its own and has one label, the same share of every class is drawn.

    Raises:
        UserError: a class would have no clip to train on, a split that is needed has none, or all clips are of one group.
    """
    if clips.splits is not None:
        held_out = "test" if (clips.splits == "test").any() and not (clips.splits == "val").any() else "val"
        require_splits(clips.splits, "train", held_out)
        train = np.flatnonzero(clips.splits == "train")
        validation = np.flatnonzero(clips.splits == held_out)
    else:
        if len(np.unique(clips.groups)) < 2:
            raise UserError("all clips are of one group, so that none can be held out: two are needed, or a column split")
        train, validation = _drawn(clips, seed)
    member = clips.targets if clips.multi_label else np.eye(len(clips.classes), dtype=bool)[clips.targets]
    absent = np.flatnonzero(~member[train].any(axis=0))
    if len(absent):
        raise UserError(
            f"class {clips.classes[absent[0]]!r} has no clip to train on: more groups of it are needed, "
            "or a list with a column split (train, val)"
        )
    return train, validation


def _drawn(clips: LabelledClips, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(clips))
    if clips.multi_label or len(np.unique(clips.groups)) < len(clips):
        splitter = GroupShuffleSplit(1, test_size=_VALIDATION_SHARE, random_state=seed)
        return next(splitter.split(rows, groups=clips.groups))
    folds = max(2, min(round(1 / _VALIDATION_SHARE), np.bincount(clips.targets).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than folds
        return next(StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, clips.targets))


def warn_of_unjudged(clips: LabelledClips, validation: np.ndarray) -> None:
    """Name the classes that none of the rows to validate on has."""
    member = clips.targets if clips.multi_label else np.eye(len(clips.classes), dtype=bool)[clips.targets]
    unjudged = np.flatnonzero(~member[validation].any(axis=0))
    if len(unjudged):
        names = some_names(clips.classes[i] for i in unjudged)
        logger.warning("%s without a clip to validate on: %s", counted(len(unjudged), "class"), names)


def class_weights(clips: LabelledClips, rows: np.ndarray) -> np.ndarray:
    """Sampling weights that draw every class equally often: of a clip, the sum over its labels of 1 / clips of the label."""
    member = clips.targets if clips.multi_label else np.eye(len(clips.classes), dtype=bool)[clips.targets]
    member = member[rows].astype(np.float64)
    return member @ (1 / np.maximum(member.sum(axis=0), 1))


def _collated(stretches: Sequence[tuple[np.ndarray, np.ndarray, int]], rows: list[int]) -> Batch:
    lms, targets, frames = zip(*stretches, strict=True)
    return Batch(
        torch.from_numpy(np.stack(lms))[:, None],
        torch.from_numpy(np.stack(targets).astype(np.float32)),
        np.array(frames),
        rows,
    )


def read_log_mel(path: Path, logmel: NumpyLogMel) -> tuple[np.ndarray, list[str]]:
    """The whole log-mel of a clip, float32 `[bands, frames]`, and what is wrong with the file that could be read all the same.

    Args:
        path: audio, or a log-mel `.npy` `[1, bands, frames]`.
        logmel: how it is made of audio.

    Raises:
        ReadError: it cannot be read; names the file.
    """
    front_end = logmel.front_end
    try:
        if path.suffix != ".npy":
            audio = read_audio(path, front_end.sample_rate)
            return logmel(audio.waveform), audio.warnings
        lms = np.load(path, allow_pickle=False)
        if lms.shape[:2] != (1, front_end.n_mels) or lms.ndim != 3 or not np.isfinite(lms).all():
            raise ValueError(f"expected a finite log-mel [1, {front_end.n_mels}, frames], got {list(lms.shape)}")
        return lms[0].astype(np.float32), []
    except (OSError, ValueError, MemoryError) as error:
        reason = explained(error) or "too large for the memory"
        raise ReadError(reason if shown(path) in reason else f"{shown(path)}: {reason}") from None


def clip_seconds(paths: Sequence[Path], workers: int) -> np.ndarray:
    """How long clips are, in s; NaN where one cannot be read, which is logged. All are read to their ends.

    Raises:
        UserError: more than a tenth cannot be read.
    """
    logmel = NumpyLogMel(PRESETS["16k"])
    frame = logmel.front_end.hop_size / logmel.front_end.sample_rate

    def seconds(path: Path) -> float:
        try:
            lms, warnings = read_log_mel(path, logmel)
        except ReadError as error:
            logger.error("left out: %s", error)
            return float("nan")
        for warning in warnings:
            logger.warning("%s", warning)
        silent.append(lms.max() <= SILENCE + _INAUDIBLE)
        return (lms.shape[1] - 1) * frame

    found, silent = np.empty(len(paths)), []
    with ThreadPoolExecutor(workers) as pool, Progress(len(paths), "clip") as progress:
        for i, value in enumerate(map_ahead(pool, seconds, paths)):
            found[i] = value
            progress.update()
    unreadable = int(np.isnan(found).sum())
    if unreadable > _MOST_UNREADABLE * len(paths):
        raise UserError(f"{unreadable} of {len(paths)} clips cannot be read (see above): too many to leave out")
    if any(silent):
        logger.warning("%s of %d without any sound", counted(sum(silent), "clip"), len(paths))
    return found


def check_events(paths: Sequence[Path], events: Sequence[Events], seconds: np.ndarray) -> None:
    """Refuse events that begin after the end of their recording, and count those that end after it: they are cut.

    Raises:
        UserError: names the recording.
    """
    late = 0
    for path, event, end in zip(paths, events, seconds, strict=True):
        onsets, offsets = event.spans[:, 0], event.spans[:, 1]
        if len(onsets) and onsets.max() > end + _TOLERATED:
            raise UserError(f"{shown(path)} ends at {end:.2f} s, and an event begins at {onsets.max():.2f} s: correct the list")
        late += int((offsets > end + _TOLERATED).sum())
    if late:
        logger.warning("%s beyond the end of a recording: cut there", counted(late, "event"))


class FineTuneSet:
    """Reads log-mels and targets of clips.

    Args:
        paths: audio files, or log-mel `.npy` `[1, bands, frames]`.
        targets: multi-hot or one-hot `[N, C]`; or one `Events` per path.
        classes: C.
        rate: the name of a preset, such as 16k.
        frames: the model's input length.
        patch_frames: frames of a time step, for events.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: np.ndarray | Sequence[Events],
        classes: int,
        rate: str,
        frames: int,
        patch_frames: int,
    ):
        self.paths, self.targets, self.classes = list(paths), targets, classes
        self.frames, self.patch_frames = frames, patch_frames
        self._front_end = PRESETS[rate]
        self._logmel = NumpyLogMel(self._front_end)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> np.ndarray:
        """The whole log-mel of a clip, float32 `[bands, frames]`.

        Raises:
            ReadError: it cannot be read; names the file.
        """
        return read_log_mel(self.paths[row], self._logmel)[0]

    def _stretch(self, lms: np.ndarray, row: int, start: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The model's length from frame `start` on: log-mel `[bands, frames]`, target, and how many frames are the clip's."""
        stretch = lms[:, start : start + self.frames]
        there = stretch.shape[1]
        stretch = np.pad(stretch, ((0, 0), (0, self.frames - there)), constant_values=SILENCE)
        if isinstance(self.targets, np.ndarray):
            return stretch, self.targets[row], there
        seconds = self._front_end.hop_size / self._front_end.sample_rate
        starts = (start + np.arange(self.frames // self.patch_frames) * self.patch_frames) * seconds
        return stretch, self.targets[row].targets(starts, self.patch_frames * seconds, self.classes), there

    def crop(self, row: int, place: float) -> tuple[np.ndarray, np.ndarray, int]:
        """A stretch of a clip to train on; `place` in [0, 1) says where it begins among all starts."""
        lms = self.read(row)
        return self._stretch(lms, row, int(choice(place, max(1, lms.shape[1] - self.frames + 1))))

    def stretches(self, row: int) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
        """All of a clip, in order."""
        lms = self.read(row)
        for start in range(0, lms.shape[1], self.frames):
            yield self._stretch(lms, row, start)

    def training_batches(self, batches: Iterable[list[SampleKey]], seed: int, workers: int) -> Iterator[Batch]:
        """Random crops, read ahead by threads; a function of the keys and the seed."""

        def read(keys: list[SampleKey]) -> Batch:
            places = uniform(seed, keys[0].epoch, np.array([key.position for key in keys]), Purpose.CROP)
            crops = [self.crop(key.index, place) for key, place in zip(keys, places, strict=True)]
            return _collated(crops, [key.index for key in keys])

        with ThreadPoolExecutor(workers) as pool:
            yield from map_ahead(pool, read, batches, ahead=2 * workers)

    def validation_batches(self, size: int, workers: int) -> Iterator[Batch]:
        """All of every clip, in order: a clip longer than the model's input comes in several stretches."""

        def read(rows: range) -> Batch:
            stretches, of = [], []
            for row in rows:
                found = list(self.stretches(row))
                stretches += found
                of += [row] * len(found)
            return _collated(stretches, of)

        parts = [range(i, min(i + size, len(self))) for i in range(0, len(self), size)]
        with ThreadPoolExecutor(workers) as pool:
            yield from map_ahead(pool, read, parts, ahead=2 * workers)


def read_events(table: pd.DataFrame, folder: Path, where: str) -> tuple[list[Path], list[Events], list[str], pd.DataFrame]:
    """Recordings with events, from a list with the columns file_name, onset, offset (s) and label (`read_table`).

    A row without a label names a recording in which nothing happens.

    Returns:
        paths, events of each, class names, and the first row of each recording (for its split and group).

    Raises:
        UserError: a row is invalid; names the line.
    """
    classes = sorted(set(table["label"]) - {""})
    if not classes:
        raise UserError(f"{where}: no row has a label")
    index = {name: i for i, name in enumerate(classes)}
    times = table[["onset", "offset"]].apply(pd.to_numeric, errors="coerce")
    labelled = table["label"] != ""
    bad = labelled & ~((times["onset"] >= 0) & (times["offset"] > times["onset"]))
    if bad.any():
        row = bad.idxmax()
        raise UserError(
            f"{where}, line {row}: onset {table['onset'][row]!r} and offset {table['offset'][row]!r} "
            "are not seconds with 0 <= onset < offset"
        )
    paths, events, firsts = [], [], []
    for name, rows in table.groupby("file_name", sort=True):
        some = rows.index[labelled[rows.index]]
        spans = [(times["onset"][i], times["offset"][i], index[table["label"][i]]) for i in some]
        paths.append(folder / str(name))
        events.append(Events(np.array(spans, dtype=np.float64).reshape(-1, 3)))
        firsts.append(rows.index[0])
    return paths, events, classes, table.loc[firsts].reset_index(drop=True)
