"""Clips with labels to judge an encoder by: a folder of class folders, or a list."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..audio.listing import list_audio, readable_suffixes, words_of_others
from ..data.clip_list import read_list
from ..utils.errors import UserError
from ..utils.names import counted, shown

logger = logging.getLogger("m2d")

#: Names that a list may give its splits.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val"}
SPLITS |= {"test": "test", "testing": "test", "eval": "test", "evaluation": "test"}
_NAMED = 5  # names that a message shows


@dataclass(frozen=True)
class LabelledClips:
    """Clips and what they are.

    Attributes:
        paths: files, audio or log-mel `.npy`, `[N]`.
        classes: names, sorted, `[C]`.
        targets: class indices, int64 `[N]`; or multi-hot labels, bool `[N, C]`.
        groups: a number for each set of clips that are held out together (kit, speaker, recording), int64 `[N]`.
        splits: train, val or test of each clip; none where the clips are split by cross-validation.
    """

    paths: list[Path]
    classes: list[str]
    targets: np.ndarray
    groups: np.ndarray
    splits: np.ndarray | None = None

    @classmethod
    def from_table(
        cls, source: Path, table: pd.DataFrame, paths: list[Path], classes: list[str], targets: np.ndarray
    ) -> "LabelledClips":
        """Clips of a list's rows, with its columns split and group where it has them.

        Raises:
            UserError: none of the files is there, or the splits make no sense.
        """
        _check_present(source, paths)
        own = "\0" + table["file_name"]  # no group's name
        groups = _numbered(table["group"].where(table["group"] != "", own) if "group" in table else own)
        splits = _splits(source, table)
        if splits is not None:
            _warn_of_shared_groups(source, groups, splits)
        repeated = int(table["file_name"].duplicated().sum())
        if repeated:
            rows = counted(repeated, "row")
            logger.warning("%s: %s with a file that an earlier row names; each row counts as a clip", shown(source), rows)
        return cls(paths, classes, targets, groups, splits)

    @property
    def multi_label(self) -> bool:
        """Whether a clip may have several labels."""
        return self.targets.ndim == 2

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: np.ndarray) -> "LabelledClips":
        splits = None if self.splits is None else self.splits[rows]
        return LabelledClips([self.paths[i] for i in rows], self.classes, self.targets[rows], self.groups[rows], splits)


def read_labelled(source: str | Path, separator: str = ";", data_path: str | Path = "") -> LabelledClips:
    """Clips of a folder or a list.

    A folder's first level of folders are the classes; a second level, if there is one, the groups. A list is a CSV with the
    columns `file_name` and `label`, and optionally `split` (train, val, test) and `group`.

    Args:
        source: the folder or the list.
        separator: between several labels of a clip.
        data_path: the folder that a list's names start from; the list's own by default.

    Raises:
        OSError, UserError: nothing can be judged with it; names the reason.
    """
    source = Path(source)
    if source.is_dir():
        clips = _from_folder(source)
    elif source.exists():
        clips = _from_list(source, separator, Path(data_path or source.parent))
    else:
        raise FileNotFoundError(f"there is no folder or list {shown(source)}")
    if len(clips.classes) < 2:
        raise UserError(f"{shown(source)}: clips of at least two classes are needed; there is {some_names(clips.classes)}")
    return clips


def _from_folder(folder: Path) -> LabelledClips:
    found, others = list_audio(folder, readable_suffixes())
    paths = [p for p in found if len(p.relative_to(folder).parts) > 1]
    if others or len(paths) < len(found):
        loose = f"{len(found) - len(paths)} files outside of class folders not taken" if len(paths) < len(found) else ""
        logger.warning("%s: %s", shown(folder), "; ".join(filter(None, (words_of_others(others), loose))))
    if not paths:
        raise UserError(f"{shown(folder)}: no audio files in folders named after their classes")
    parts = [p.relative_to(folder).parts for p in paths]
    groups = [p[1] if len(p) > 2 else str(Path(*p)) for p in parts]
    classes, targets = np.unique([p[0] for p in parts], return_inverse=True)
    return LabelledClips(paths, classes.tolist(), targets.astype(np.int64), _numbered(groups))


def read_table(path: Path) -> pd.DataFrame:
    """A list as text: the columns file_name and label, and of split, group, onset and offset those that it has.

    The index is the line of each row; blank lines are left out, and so is space around values other than names of files.

    Raises:
        FileError: not a CSV with the columns file_name and label, or an empty one.
    """
    clips = read_list(path, ("file_name", "label"), ("split", "group", "onset", "offset"), valued=("file_name",))
    table = pd.DataFrame({name: list(column) for name, column in clips.columns.items()}, index=clips.rows)
    for name in table.columns.drop("file_name"):
        table[name] = table[name].str.strip()
    return table


def _from_list(path: Path, separator: str, folder: Path) -> LabelledClips:
    table = read_table(path)
    unlabelled = table.index[table["label"] == ""]
    if len(unlabelled):
        raise UserError(f"{shown(path)}, line {unlabelled[0]}: no label")
    labels = [[part.strip() for part in text.split(separator) if part.strip()] for text in table["label"]]
    classes = sorted({label for row in labels for label in row})
    index = {name: i for i, name in enumerate(classes)}
    if all(len(row) == 1 for row in labels):
        targets = np.array([index[row[0]] for row in labels], dtype=np.int64)
    else:
        targets = np.zeros((len(labels), len(classes)), dtype=bool)
        for i, row in enumerate(labels):
            targets[i, [index[label] for label in row]] = True
    return LabelledClips.from_table(path, table, [folder / name for name in table["file_name"]], classes, targets)


def _check_present(path: Path, paths: Sequence[Path]) -> None:
    """Refuse a list whose names start from another folder, or whose columns are exchanged, before hours of work."""
    missing = [p for p in paths if not p.exists()]
    if len(missing) == len(paths):
        raise UserError(
            f"{shown(path)}: none of its {len(paths)} files is there (the first: {shown(missing[0])}); "
            "--data_path names the folder that the column file_name starts from"
        )
    if missing:
        logger.warning("%s: %d of %d files are missing (the first: %s)", shown(path), len(missing), len(paths), shown(missing[0]))


def _splits(path: Path, table: pd.DataFrame) -> np.ndarray | None:
    if "split" not in table:
        return None
    names = table["split"].str.lower()
    if (names == "").any():
        raise UserError(f"{shown(path)}, line {names.index[names == ''][0]}: no split; expected train, val or test")
    unknown = sorted(set(names) - SPLITS.keys())
    if unknown:
        raise UserError(f"{shown(path)}: the column split holds {some_names(unknown)}; expected train, val or test")
    return names.map(SPLITS).to_numpy()


def _warn_of_shared_groups(path: Path, groups: np.ndarray, splits: np.ndarray) -> None:
    """Warn of groups in the split train and in another, which make figures too high; the list's splits are kept."""
    shared = np.intersect1d(groups[splits == "train"], groups[splits != "train"])
    if len(shared):
        count = counted(len(shared), "group")
        logger.warning("%s: %s with clips in the split train and in another: figures will be too high", shown(path), count)


def _numbered(names: Iterable[str]) -> np.ndarray:
    return pd.factorize(pd.Series(list(names)))[0].astype(np.int64)


def judgeable(clips: LabelledClips) -> LabelledClips:
    """The clips whose class can be both learned from and judged by: in two groups, or in the splits train and test.

    What is left out is logged.

    Raises:
        UserError: fewer than two classes remain, or one of the splits train and test has no clip.
    """
    if clips.splits is not None:
        require_splits(clips.splits, "train", "test")
    member = clips.targets if clips.multi_label else np.eye(len(clips.classes), dtype=bool)[clips.targets]
    if clips.splits is not None:
        kept = member[clips.splits == "train"].any(axis=0) & member[clips.splits == "test"].any(axis=0)
        reason = "in only one of the splits train and test"
    else:
        kept = np.array([len(np.unique(clips.groups[column])) > 1 for column in member.T])
        reason = "in one group alone (a class needs clips of two groups, one to learn from and one to judge by)"
    if kept.sum() < 2:
        raise UserError(f"fewer than two classes can be judged: {some_names(np.array(clips.classes)[~kept])} {reason}")
    if kept.all():
        return clips
    logger.warning("%s left out, %s: %s", counted((~kept).sum(), "class"), reason, some_names(np.array(clips.classes)[~kept]))
    rows = np.flatnonzero(member[:, kept].any(axis=1))
    targets = member[np.ix_(rows, kept)]
    if not clips.multi_label:
        targets = targets.argmax(axis=1)
    subset = clips[rows]
    return LabelledClips(subset.paths, np.array(clips.classes)[kept].tolist(), targets, subset.groups, subset.splits)


def require_splits(splits: np.ndarray, *needed: str) -> None:
    """Raise UserError where a split that is needed has no clip."""
    for split in needed:
        if not (splits == split).any():
            raise UserError(f"the list's column split: no clip has the split {split}; {' and '.join(needed)} are needed")


def class_counts(clips: LabelledClips) -> dict[str, int]:
    """Clips of each class."""
    if clips.multi_label:
        return dict(zip(clips.classes, clips.targets.sum(axis=0).tolist(), strict=True))
    counts = Counter(clips.targets.tolist())
    return {name: counts[i] for i, name in enumerate(clips.classes)}


def some_names(names: Iterable[str]) -> str:
    """The first names on one line, and how many more there are."""
    names = [re.sub(r"\s+", " ", str(name)) for name in names]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
