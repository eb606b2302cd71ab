"""What a run's folder holds, running, finished or broken off: settings, figures of epochs, speed, checkpoints."""

import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.file import checkpoints_in, is_whole, load_file
from ..run.folder import BEST, FINETUNE_LOCK, LAST, LOCK, PREVIOUS, RECORD, read_run_file
from ..utils.errors import UserError
from ..utils.names import shown
from ..utils.own_files.lock import is_held

LOG, CONSOLE = "log.txt", "console.txt"
#: A report line of console.txt: epoch, step of steps, clips per second, share of waiting.
_SPEED = re.compile(r"epoch (\d+)/\d+  step (\d+)/(\d+)  loss .*?  (\d+) clips/s  .*?data-wait (\d+)%")

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class Speed:
    """Speed at a report: position in epochs, clips per second, share of the time spent waiting for data."""

    position: float
    rate: float
    waiting: float


@dataclass(frozen=True)
class Run:
    """A run, or a checkpoint alone.

    Attributes:
        name: the folder's.
        folder: where it is.
        settings: by flag; empty where they are not known.
        starts: when, by which command and with which versions it was started.
        epochs: figures of each epoch by name, `epoch` among them.
        speeds: as reported on the console.
        checkpoint: the newest whole one (of fine-tuning: the best); none: there is none yet.
        saved: what the checkpoint holds, without its tensors.
        is_running: a process holds the folder.
    """

    name: str
    folder: Path
    settings: Mapping[str, Any]
    starts: list[dict]
    epochs: list[dict[str, float]]
    speeds: list[Speed]
    checkpoint: Path | None
    saved: Mapping[str, Any] = field(default_factory=dict)
    is_running: bool = False

    @property
    def is_finetuning(self) -> bool:
        """Whether `m2d finetune` wrote it."""
        return "mixup" in self.settings

    @property
    def last_epoch(self) -> int | None:
        """The epoch at which it ends."""
        epochs, stop_at = self.settings.get("epochs"), self.settings.get("stop_at", -1)
        if not isinstance(epochs, int):
            return None
        return min(epochs, stop_at) if isinstance(stop_at, int) and stop_at > 0 else epochs

    @property
    def state(self) -> str:
        """running, finished, or stopped; checkpoint where there is no run."""
        if self.is_running:
            return "running"
        if not self.epochs:
            return "stopped" if self.starts else "checkpoint"
        done = self.epochs[-1]["epoch"]
        return "finished" if self.last_epoch is None or done >= self.last_epoch else "stopped"


def read_run(source: str | Path) -> Run:
    """A run, by its folder or by one of its checkpoints.

    Raises:
        FileNotFoundError, UserError: there is no such thing, or nothing of a run in the folder.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no run or checkpoint {shown(path)}")
    folder = path if path.is_dir() else path.absolute().parent
    has_record = (folder / RECORD).exists()
    epochs = read_epochs(folder / LOG)
    checkpoint = newest_checkpoint(folder) if path.is_dir() else path
    if not (has_record or epochs or checkpoint):
        raise UserError(f"{shown(folder)} holds no run (run.json) and no checkpoint")
    record = read_run_file(folder) if has_record else None
    saved = _without_tensors(load_file(checkpoint)) if checkpoint else {}
    return Run(
        name=folder.absolute().name,
        folder=folder,
        settings={**_saved_settings(saved), **(record.settings if record else {})},
        starts=record.starts if record else [],
        epochs=epochs,
        speeds=list(read_speeds(folder / CONSOLE)),
        checkpoint=checkpoint,
        saved=saved,
        is_running=is_held(folder / LOCK) or is_held(folder / FINETUNE_LOCK),
    )


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder: of fine-tuning the best one; torn ones are left out."""
    numbered = checkpoints_in(folder)
    is_pretraining = (folder / LOCK).exists()  # of fine-tuning the best epoch counts
    names = (LAST, PREVIOUS) if is_pretraining else (BEST, LAST, PREVIOUS)
    for path in [*map(folder.joinpath, names), *reversed(numbered)]:
        if path.is_file():
            if is_whole(path):
                return path
            logger.warning("%s is incomplete: using the checkpoint before it", shown(path))
    others = sorted(path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors") and path not in numbered)
    return others[0] if len(others) == 1 and is_whole(others[0]) else None


def read_epochs(log: Path) -> list[dict[str, float]]:
    """The finite figures of each epoch of a log.txt, by epoch; torn lines are left out.

    Raises:
        OSError: it cannot be read.
    """
    found: dict[float, dict[str, float]] = {}
    if log.is_file():
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            row = _figures(line)
            if "epoch" in row:
                found[row["epoch"]] = row
    return [found[epoch] for epoch in sorted(found)]


def _figures(line: str) -> dict[str, float]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(row, dict):
        return {}
    return {name: value for name, value in row.items() if type(value) in (int, float) and math.isfinite(value)}


def read_speeds(console: Path) -> Iterator[Speed]:
    """The speeds of a console.txt, by position; of a stretch that was trained again, the last one counts."""
    if not console.is_file():
        return
    found: dict[float, Speed] = {}
    with console.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if match := _SPEED.search(line):
                epoch, step, steps, rate, waiting = map(int, match.groups())
                position = epoch - 1 + step / max(steps, 1)
                found[position] = Speed(position, rate, waiting / 100)
    yield from (found[position] for position in sorted(found))


def _without_tensors(saved: Mapping) -> dict[str, Any]:
    """A checkpoint's metadata, without its weights and optimizer state."""
    heavy = ("model", "optimizer", "scaler", "state_dict")
    return {key: value for key, value in saved.items() if isinstance(key, str) and key not in heavy and "." not in key}


def _saved_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a checkpoint, those of fine-tuning joined to the model's sizes."""
    found: dict[str, Any] = {}
    for part in (saved.get("args"), saved.get("finetune")):
        values = part if isinstance(part, Mapping) else getattr(part, "__dict__", {})
        found |= {key: value for key, value in values.items() if isinstance(key, str)}
    return found
