"""The clips that a report looks at: those of a run's list or pack, or audio files."""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..audio.decode import open_audio
from ..audio.listing import find_audio, readable_suffixes
from ..audio.logmel import PRESETS, NumpyLogMel
from ..data.dataset import AudioDataset, prepare
from ..data.file_store import FileStore, NpyStore
from ..data.npy import read_header
from ..data.open import open_store
from ..data.pack.store import PackStore
from ..data.sampler import EpochSampler
from ..data.store import ClipStore, fill_short
from ..evaluation.labelled_clips import read_labelled, read_table
from ..train import programs
from ..train.batch_transform import MaskRule
from ..train.config import GROUPS, Settings
from ..utils.addresses import is_address
from ..utils.errors import UserError
from ..utils.names import shown
from .runs import Run

_LENGTHS_READ = 500
#: Of families whose lists hold more than log-mels; captions are not looked at.
_OPENERS = {"m2d_as": programs.open_labelled, "m2d_s": programs.open_speech}

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class Seen:
    """A sample as training gives it to the encoder.

    Attributes:
        name: the clip's.
        clip: its log-mel, noise mixed in where the run does that, `[n_mels, frames]`.
        hidden: which patches are masked, bool `[F, T]`.
    """

    name: str
    clip: np.ndarray
    hidden: np.ndarray


class Clips(ABC):
    """Named clips, of which crops can be read.

    Attributes:
        source: where they come from, in words.
        names: of all clips.
        labels: what each clip is; none where they are not known.
    """

    source: str
    names: Sequence[str]
    labels: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def beginnings(self, rows: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `frames` of clips, short ones completed by silence.

        Returns:
            float32 `[n, n_mels, frames]` and rows `[n]` of those that can be read; the others are logged.
        """
        crops, kept = [], []
        for row in rows.tolist():
            try:
                crops.append(np.asarray(self._beginning(row, frames), dtype=np.float32))
                kept.append(row)
            except (OSError, ValueError) as error:
                logger.warning("left out: %s", error)
        if not kept:
            raise UserError(f"{self.source}: none of the {len(rows)} clips looked at can be read")
        return np.stack(crops), np.array(kept)

    @abstractmethod
    def _beginning(self, row: int, frames: int) -> np.ndarray:
        """The first frames of a clip."""

    @abstractmethod
    def sound(self, row: int) -> Path | None:
        """The audio file of a clip, where it is known and there."""

    def lengths(self) -> np.ndarray:
        """Frames of up to _LENGTHS_READ clips."""
        return np.zeros(0, dtype=np.int64)


# ---------------------------------------------------------------- lists and packs of log-mels


class StoredClips(Clips):
    """The clips of a list or pack.

    Args:
        store: the clips.
        audio: folder with the audio that the log-mels were made from: SRC/sub/a.wav for a clip …/sub/a.npy.
    """

    def __init__(self, store: ClipStore, audio: Path | None = None):
        self._store = store
        self.source = ", ".join(str(part.source) for part in store.parts)
        self.names = store.columns["file_name"]
        if "label" in store.columns:
            self.labels = list(store.columns["label"])
        self._sounds = SoundIndex(audio) if audio else None

    def _beginning(self, row: int, frames: int) -> np.ndarray:
        return self._store.read_crops(np.array([row]), np.zeros(1), frames)[0]

    def sound(self, row: int) -> Path | None:
        return self._sounds.find(self.names[row]) if self._sounds else None

    def lengths(self) -> np.ndarray:
        share = _LENGTHS_READ / len(self)
        return np.concatenate([_lengths(part, evenly(len(part), math.ceil(share * len(part)))) for part in self._store.parts])


def _lengths(store: ClipStore, rows: np.ndarray) -> np.ndarray:
    """Frames of a list's or pack's clips; none for stores without lengths and for clips that cannot be read."""
    if isinstance(store, PackStore):
        return store.frames.lengths[rows]
    if not isinstance(store, NpyStore):
        return np.zeros(0, dtype=np.int64)
    return np.array([frames for row in rows.tolist() if (frames := _frames_of(store, row))], dtype=np.int64)


def _frames_of(store: FileStore, row: int) -> int:
    try:
        with store.opened(row) as fd:
            return read_header(fd).shape[-1]
    except (OSError, ValueError):
        return 0


class SoundIndex:
    """Audio files below a folder, by their paths without suffix."""

    def __init__(self, folder: Path):
        self._paths = {
            path.relative_to(folder).with_suffix("").as_posix(): path for path in find_audio(folder, readable_suffixes())
        }

    def find(self, name: str) -> Path | None:
        """The file that a clip was made from: of the longest end of the clip's path that is the path of a file."""
        parts = Path(name).with_suffix("").parts
        ends = ("/".join(parts[begin:]) for begin in range(len(parts)))
        return next((self._paths[end] for end in ends if end in self._paths), None)


# ---------------------------------------------------------------- audio files


class AudioClips(Clips):
    """Audio files, or log-mel `.npy` files.

    Args:
        source: where they come from, in words.
        paths: the files.
        names: what they are called.
        rate: name of the sampling rate's preset.
        labels: what they are.
    """

    def __init__(self, source: str, paths: Sequence[Path], names: Sequence[str], rate: str, labels: Sequence[str] | None = None):
        self.source, self.paths, self.names, self.labels = source, paths, names, labels
        self._to_lms = NumpyLogMel(PRESETS[rate])

    def _beginning(self, row: int, frames: int) -> np.ndarray:
        path = self.paths[row]
        if path.suffix == ".npy":
            lms = np.load(path, allow_pickle=False)
            if lms.ndim != 3 or len(lms) != 1:
                raise ValueError(f"{shown(path)}: expected a log-mel [1, mel bands, frames], got {list(lms.shape)}")
            lms = lms[0]
        else:
            front_end = self._to_lms.front_end
            lms = self._to_lms(read_beginning(path, front_end.sample_rate, frames * front_end.hop_size))
        crop = np.empty((lms.shape[0], frames), dtype=np.float32)
        valid = min(frames, lms.shape[1])
        crop[:, :valid] = lms[:, :valid]
        fill_short(crop, valid, repeat=False)
        return crop

    def sound(self, row: int) -> Path | None:
        path = self.paths[row]
        return path if path.suffix != ".npy" and path.is_file() else None


def read_beginning(path: Path, rate: int, samples: int) -> np.ndarray:
    """The first samples of an audio file, however long it is: float32, at most `samples`.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    blocks, count = [], 0
    with open_audio(path, rate) as stream:
        for block in stream:
            blocks.append(block)
            count += len(block)
            if count >= samples:
                break
    return np.concatenate(blocks)[:samples] if blocks else np.zeros(0, np.float32)


# ---------------------------------------------------------------- of a run


def settings_of(run: Run) -> Settings:
    """The settings of a pre-training run.

    Raises:
        UserError: they are no settings of a training program.
    """
    try:
        known = {name: msgspec.convert(dict(run.settings), group) for name, group in GROUPS.items()}
    except msgspec.ValidationError as error:
        raise UserError(f"{shown(run.folder)}: its settings are not those of a training program: {error}") from error
    return replace(Settings(), **known)


def open_dataset(run: Run, csv: Path | None, data_path: Path | None) -> tuple[AudioDataset, Settings]:
    """The training data of a run, or those of another list, as its program opens them.

    Raises:
        OSError, UserError: the list or its clips cannot be used.
    """
    settings = settings_of(run)
    main = str(csv or settings.data.csv_main)
    base = _base_folder(run, Path(main))
    data = replace(
        settings.data,
        csv_main=_placed(base, main),
        data_path=str(data_path or base / settings.data.data_path),
        csv_bg_noise=_placed(base, settings.data.csv_bg_noise) if settings.data.csv_bg_noise else "",
        min_ds_size=settings.data.min_ds_size if "min_ds_size" in run.settings else 0,
    )
    settings = replace(settings, data=data)
    noise = open_store(data.csv_bg_noise, data.data_path, check=False) if data.noise_ratio > 0 and data.csv_bg_noise else None
    dataset = _OPENERS.get(settings.model.family, programs.open_audio)(settings, data.csv_main, noise, None)
    dataset.skip_bad_files = True
    return dataset, settings


def _placed(base: Path, lists: str) -> str:
    return lists if is_address(lists) else str(base / lists)


def _base_folder(run: Run, wanted: Path) -> Path:
    """The folder that a run's paths start from: this one, the one it was started in, or one above it."""
    started = [Path(start["folder"]) for start in run.starts if isinstance(start.get("folder"), str)]
    bases = [Path(), *reversed(started), *run.folder.absolute().parents]
    return next((base for base in bases if (base / wanted).exists()), Path())


def samples_seen(dataset: AudioDataset, settings: Settings, epoch: int, count: int, stats: Any) -> list[Seen]:
    """The first samples of an epoch, as training gives them to the encoder.

    Args:
        stats: the run's statistics: (mean, std) of the clips and of the noise; none: not known, and no noise is mixed in.

    Raises:
        OSError, UserError: clips cannot be read.
    """
    count = min(count, len(dataset))
    weights = dataset.weights if settings.data.weighted else None
    keys = next(EpochSampler(len(dataset), count, seed=settings.run.seed, weights=weights).batches(epoch))
    batch = dataset.__getitems__(keys)
    clip = batch.clean.float()
    if stats is not None and batch.noise is not None:
        (mean, std), noise_stats = stats
        clean, mixed = prepare(batch.clean, batch.noise, (mean, std), noise_stats, settings.data.noise_ratio)
        clip = (clean if settings.data.swap_inputs else mixed) * std + mean
    model = settings.model
    (mels, frames), (height, width) = model.input_shape, model.patch_shape
    grid = (mels // height, frames // width)
    plan = MaskRule(grid, model.mask_ratio, settings.run.seed, model.cont_mask)(epoch, batch.position)
    hidden = plan.mask.unflatten(1, grid).bool().numpy()
    names = [dataset.clips.name(int(i) % len(dataset.clips)) for i in batch.index]
    return [Seen(name, clip[i, 0].numpy(), hidden[i]) for i, name in enumerate(names)]


def finetuning_clips(run: Run) -> AudioClips | None:
    """The clips that a fine-tuning run learns from, with their labels where each has one; none where its folder is silent.

    Raises:
        OSError, UserError: they cannot be used.
    """
    given, rate = run.settings.get("data"), str(run.settings.get("sr", "16k"))
    if not isinstance(given, str):
        return None
    base = _base_folder(run, Path(given))
    source, data_path = base / given, run.settings.get("data_path")
    folder = base / data_path if isinstance(data_path, str) else source.parent
    if not source.is_dir():
        table = read_table(source)
        if {"onset", "offset"} <= set(table):
            names = table["file_name"].unique().tolist()
            return AudioClips(given, [folder / name for name in names], names, rate)
    separator = run.settings.get("separator")
    clips = read_labelled(source, separator if isinstance(separator, str) else ";", folder if not source.is_dir() else "")
    labels = None if clips.multi_label else [clips.classes[i] for i in clips.targets]
    return AudioClips(given, clips.paths, names_of(clips.paths), rate, labels)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Paths as seen from the folder that holds all of them."""
    folder = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    return [path.absolute().relative_to(folder).as_posix() for path in paths]


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, evenly spread: int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
