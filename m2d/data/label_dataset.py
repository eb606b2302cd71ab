"""Samples of an M2D-AS run: clips with their AudioSet labels (Niizumi et al., 2024, section IV-C)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..utils.errors import FileError
from .dataset import AudioDataset
from .store import ClipStore

LIST_COLUMNS = ("file_name", "label")


class LabelTable:
    """The classes of each clip, held as class numbers one after the other.

    Attributes:
        classes: all class ids, sorted as text.
        codes, offsets: clip i's class numbers are `codes[offsets[i] : offsets[i + 1]]`.
    """

    def __init__(self, clips: ClipStore, classes: Sequence[str] | None = None):
        """Read the column `label`: comma-separated class ids.

        Args:
            clips: a store with the column.
            classes: the classes to use; else all that the list names.

        Raises:
            FileError: a clip has no class id, or one that is not in `classes` (the row is named).
        """
        lists = pc.split_pattern(clips.columns["label"].to_arrow(), ",")
        ids, clip_of = pc.utf8_trim_whitespace(lists.flatten()), pc.list_parent_indices(lists).to_numpy()
        given = pc.not_equal(ids, "").to_numpy(zero_copy_only=False)
        ids, clip_of = ids.filter(pa.array(given)), clip_of[given]
        counts = np.bincount(clip_of, minlength=len(clips))
        if not counts.all():
            raise FileError(f"{clips.where(int(np.argmin(counts)))}: no class id in its label")
        self.classes = sorted(pc.unique(ids).to_pylist()) if classes is None else list(classes)
        codes = pc.index_in(ids, value_set=pa.array(self.classes, ids.type))
        if codes.null_count:
            place = int(np.argmax(codes.is_null().to_numpy(zero_copy_only=False)))
            raise FileError(
                f"{clips.where(int(clip_of[place]))}: label {ids[place]} is not among the {len(self.classes)} classes of training"
            )
        self.codes = codes.to_numpy().astype(np.int32)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])

    def multi_hot(self, clips: np.ndarray) -> np.ndarray:
        """Targets of clips: float32 `[B, classes]`, 1 at each clip's classes."""
        target = np.zeros((len(clips), len(self.classes)), dtype=np.float32)
        for row, i in zip(target, clips.tolist(), strict=True):
            row[self.codes[self.offsets[i] : self.offsets[i + 1]]] = 1
        return target


class ASDataset(AudioDataset):
    """Crops of labelled clips, each with `target`: its classes, multi-hot float32 `[B, classes]`.

    The list keeps its order and is not repeated.

    Args:
        clips: the clips, from a list with a column `label` and, for weighted sampling, `weight`:
            `open_store(..., sort=False, columns=LIST_COLUMNS, optional=("weight",))`.
        input_frames, seed, noise, random_crop: as for AudioDataset.
        classes: class ids, in the order of the target; those of the list itself without it. Validation takes training's.

    Attributes:
        classes: class ids, in the order of the target.
        target_width: their number.
        weights: sampling weights float64 `[clips]`, None where the list has no column `weight`.

    Raises:
        FileError: a label or weight cannot be used (the row is named).
    """

    def __init__(
        self,
        clips: ClipStore,
        input_frames: int,
        seed: int,
        noise: ClipStore | None = None,
        random_crop: bool = True,
        classes: Sequence[str] | None = None,
    ):
        super().__init__(clips, input_frames, seed, noise, random_crop)
        self.labels = LabelTable(clips, classes)
        self.classes = self.labels.classes
        self.target_width = len(self.classes)
        self.metadata = {"classes": list(self.classes)}
        self.weights = read_weights(clips)

    def read(self, clips: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        return super().read(clips, u) | {"target": self.labels.multi_hot(clips)}


def read_weights(clips: ClipStore) -> np.ndarray | None:
    """The column `weight` as float64 `[clips]`; None without it.

    Raises:
        FileError: a weight is no number, negative or not finite (the row is named), or all are 0.
    """
    if "weight" not in clips.columns:
        return None
    texts = clips.columns["weight"]
    try:
        weights = pc.cast(texts.to_arrow(), pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        weights = np.array([_number(text) for text in texts])
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        i = int(np.argmax(bad))
        raise FileError(f"{clips.where(i)}: weight {texts[i]!r}, expected a number of at least 0")
    if not weights.any():
        raise FileError(f"{clips.source}: all weights are 0")
    return weights


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
