"""What a run continues from: a training checkpoint whose values are checked before they are used."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from .errors import CheckpointError
from .file import load_file, resolve

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 60)]


class _Meter(msgspec.Struct):
    sums: dict[str, float] | list[float] | None
    count: Count
    skipped: Count


class _Published(msgspec.Struct):
    """The types of a training checkpoint's values, where it has them."""

    model: dict[Any, Any] = {}
    optimizer: dict[Any, Any] = {}
    epoch: Count = 0
    scaler: dict[Any, Any] | None = None
    updates: Count = 0
    updates_per_epoch: Positive = 1
    effective_batch: Positive = 1
    meter: _Meter | None = None
    lists: dict[str, str] = {}


class _Own(msgspec.Struct):
    """What a checkpoint of this program has at least."""

    model: dict[Any, Any]
    optimizer: dict[Any, Any]
    epoch: Count
    scaler: dict[Any, Any]
    args: dict[str, Any]
    updates: Count
    updates_per_epoch: Positive
    effective_batch: Positive
    meter: _Meter
    lists: dict[str, str]
    stats: list[Any]


def load_training_state(source: str | Path, own: bool = False) -> dict:
    """`load_file`, with the types and ranges checked of what a run continues from.

    Args:
        source: as for `load_file`.
        own: it is to hold all that a run of this program needs to continue at its exact step.

    Raises:
        FileNotFoundError, CheckpointError: as `load_file`; also for a value that no training writes.
    """
    path = resolve(source)
    saved = load_file(path)
    try:
        msgspec.convert({key: value for key, value in saved.items() if isinstance(key, str)}, _Own if own else _Published)
    except (msgspec.ValidationError, RecursionError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint that {'this run' if own else 'a training'} wrote: {error}") from error
    return saved
