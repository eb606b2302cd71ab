"""What a run continues from: a training checkpoint whose values are checked before they are used."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from .errors import CheckpointError
from .file import load_file, resolve

Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 60)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 60)]


class _TrainingState(msgspec.Struct, forbid_unknown_fields=False):
    """The types of a training checkpoint's values, where it has them: published ones have the first five."""

    model: dict[Any, Any]
    optimizer: dict[Any, Any] = {}
    epoch: Count = 0
    scaler: dict[Any, Any] | None = None
    args: Any = None
    updates: Count = 0
    updates_per_epoch: Positive = 1
    effective_batch: Positive = 1
    meter: dict[Any, Any] | None = None
    lists: dict[str, str] = {}


def load_training_state(source: str | Path) -> dict:
    """`load_file`, with the types and ranges checked of what a run continues from.

    Raises:
        FileNotFoundError, CheckpointError: as `load_file`; also for a value that no training writes.
    """
    path = resolve(source)
    saved = load_file(path)
    try:
        msgspec.convert({str(key): value for key, value in saved.items()}, _TrainingState)
    except (msgspec.ValidationError, RecursionError) as error:
        raise CheckpointError(f"{path}: not what a training writes: {error}") from error
    args = saved.get("args")
    if args is not None and not isinstance(args, dict) and not hasattr(args, "__dict__"):
        raise CheckpointError(f"{path}: not what a training writes: args is a {type(args).__name__}")
    return saved
