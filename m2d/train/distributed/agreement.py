"""Ranks of a run learn from the same data with the same settings and code, or the run ends before it begins."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from ...utils.errors import UserError
from ..config import Settings
from .collectives import gather
from .launch import Launch

#: Settings that may differ between machines; what the lists hold is compared by itself.
_LOCAL = {
    "data_path",
    "csv_main",
    "csv_bg_noise",
    "csv_val",
    "file_caption",
    "device",
    "num_workers",
    "pin_mem",
    "log_dir",
    "output_dir",
}
_PACKAGE = Path(__file__).resolve().parents[2]


@cache
def code_digest() -> str:
    """A hash of the package's source files."""
    state = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        state.update(f"{path.relative_to(_PACKAGE)} ".encode() + path.read_bytes())
    return state.hexdigest()[:16]


def shared_values(settings: Settings) -> dict[str, object]:
    """What ranks must have in common before they open their data: the code, and the settings that are not a machine's own."""
    values = {f"--{name}": value for name, value in settings.as_dict().items() if name not in _LOCAL}
    return {"the code of m2d": code_digest(), "torch": torch.__version__, **values}


def check_same(launch: Launch, values: Mapping[str, object]) -> None:
    """Compare values that the ranks of a run must have in common; to be called by all ranks.

    Raises:
        UserError: on all ranks, naming the first rank that differs from rank 0, and each value that does.
    """
    if launch.world_size == 1:
        return
    first, *others = gather(dict(values))
    for rank, other in enumerate(others, 1):
        names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
        if names:
            pairs = "; ".join(f"{name} is {first.get(name)!r} on rank 0, {other.get(name)!r} on rank {rank}" for name in names)
            raise UserError(f"the ranks of a run need the same data, settings and code: {pairs}")
