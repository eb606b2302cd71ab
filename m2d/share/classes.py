"""The names of a classifier's classes, for an exported model."""

from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.weights import Weights
from ..inference.classes import read_classes
from ..utils.names import shown


@dataclass(frozen=True)
class Classes:
    """A classifier's classes: their names, and whether they exclude each other."""

    names: list[str]
    single_label: bool


def classes_of(weights: Weights, file: Path | None, single: bool) -> Classes | None:
    """The classes of a checkpoint: named by a file, else by the checkpoint, else numbered; None where it has no classifier.

    Args:
        weights: the checkpoint.
        file: names, as `m2d tag` takes them.
        single: they exclude each other, even if the checkpoint does not say so.

    Raises:
        ValueError: names, or `single`, that do not fit the checkpoint.
    """
    count = len(weights.head.get("head.weight", ()))
    if not count:
        if file or single:
            raise ValueError(f"{shown(weights.path)} has no classifier: leave --classes and --single out")
        return None
    names = read_classes(file) if file else weights.classes or [f"class {i}" for i in range(count)]
    if len(names) != count:
        raise ValueError(f"--classes {shown(file or weights.path)} names {len(names)} classes; the classifier has {count}")
    return Classes(names, single or weights.single_label)
