"""A run's folder: one run at a time, its settings in run.json, and its newest whole checkpoint."""

import json
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import IO

import msgspec
import torch

from .. import __version__
from ..checkpoint.file import checkpoints_in, is_whole
from ..utils.atomic_file import remove_leftovers, write_text
from ..utils.errors import UserError
from ..utils.outputs import check_writable
from ..utils.own_files.lock import LockedError, hold_lock
from ..utils.read_file import read_json

LAST, PREVIOUS, BEST = "last.pth", "last-previous.pth", "checkpoint-best.pth"
RECORD = "run.json"
#: Held while a run is in its folder: of pre-training, and of fine-tuning.
LOCK, FINETUNE_LOCK = "run.lock", "finetune.lock"

logger = logging.getLogger("m2d")


def existing_run(wanted: Path) -> Path:
    """The newest run of this name whatever its date: a run that began on another day is resumed there."""
    dated = re.fullmatch(r"(.+-)\d{6}(-.*)", wanted.name)
    if wanted.exists() or dated is None or not wanted.parent.is_dir():
        return wanted
    begin, end = dated.groups()
    pattern = re.compile(re.escape(begin) + r"(\d{6})" + re.escape(end))
    runs = [path for path in wanted.parent.iterdir() if pattern.fullmatch(path.name) and (path / RECORD).exists()]
    return max(runs, key=lambda path: path.name.removeprefix(begin)[:6], default=wanted)


class RunFile(msgspec.Struct):
    """What run.json holds: each start's time, folder, command and versions, and the settings by flag."""

    starts: list[dict]
    settings: dict


def read_run_file(folder: Path) -> RunFile:
    """The run.json of a folder.

    Raises:
        FileNotFoundError, FileError: there is none, or it is damaged.
    """
    return read_json(folder / RECORD, RunFile, "a training run")


def record_start(folder: Path, settings: Mapping[str, object]) -> None:
    """Record the settings, time, working folder and command of a start in the folder's run.json.

    Raises:
        FileError, OSError: the run.json that is there is damaged, or it cannot be written.
    """
    starts = read_run_file(folder).starts if (folder / RECORD).exists() else []
    versions = {"m2d": __version__, "torch": torch.__version__, "python": platform.python_version()}
    starts.append({"time": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "folder": os.getcwd(), "command": sys.argv, **versions})
    write_text(folder / RECORD, json.dumps({"starts": starts, "settings": dict(settings)}, indent=1))


class RunFolder:
    """The folder of a run, locked by one run at a time."""

    def __init__(self, path: Path):
        self.path = path
        self._lock: IO[bytes] | None = None

    def find_run(self, auto_resume: bool) -> Path | None:
        """Lock the folder if it holds a run, and return the run's newest whole checkpoint; None without a run.

        Args:
            auto_resume: resume a run that is there.

        Raises:
            UserError: there is a run and `auto_resume` is off, another process holds it, or no checkpoint of it is whole;
                there is none, and `begin` would be refused.
        """
        if not self.holds_run():
            self._check_new()
            return None
        self._hold()
        if not auto_resume:
            raise UserError(
                f"{self.path} holds a run already: --auto_resume resumes it; --output_dir names another folder for a new run"
            )
        return self._newest_checkpoint()

    def begin(self, settings: Mapping[str, object]) -> None:
        """Make and lock the folder, and record the settings, time and command of this start in run.json.

        Raises:
            UserError: another process holds it, a run began there meanwhile, it holds files of a run's names, or it cannot be
                written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                if not self.holds_run():
                    self._check_new()
                self._hold()
                if self.holds_run():
                    raise UserError(f"{self.path}: another run began there in the meantime")
            self._remove_leftovers()
            record_start(self.path, settings)
        except OSError as error:
            raise UserError(f"{self.path}: the run's folder cannot be written: {error.strerror}") from error

    def holds_run(self) -> bool:
        """Whether a run has begun in the folder."""
        return (self.path / RECORD).exists()

    def _hold(self) -> None:
        """Lock the folder until this process ends, in whatever way."""
        try:
            self._lock = hold_lock(self.path / LOCK)
        except LockedError as error:
            raise UserError(f"{self.path} is in use by {error.holder}") from None
        except OSError as error:
            raise UserError(f"{self.path}: the run's folder cannot be written: {error.strerror}") from error

    def _check_new(self) -> None:
        """Check that a new run can write here. Files of a run's names are not its own: a released checkpoint, for example."""
        check_writable(self.path / RECORD)
        if not self.path.exists():
            return
        names = (LAST, PREVIOUS, BEST, "log.txt")
        found = [path for path in map(self.path.joinpath, names) if os.path.lexists(path)] + checkpoints_in(self.path)
        if found:
            raise UserError(
                f"{self.path} holds {found[0].name}, which no run of this program wrote there and this one would replace: "
                "give another --output_dir, or move it away"
            )

    def _remove_leftovers(self) -> None:
        """Remove what a killed process was writing; this one holds the folder, so that no other is at work."""
        remove_leftovers(self.path, seconds=0)
        (self.path / "last.new.pth").unlink(missing_ok=True)

    def _newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint. Torn ones are skipped with a warning, and moved out of the way of the next ones."""
        candidates = [self.path / LAST, self.path / PREVIOUS, *reversed(checkpoints_in(self.path))]
        found = [path for path in candidates if path.exists()]
        for path in found:
            if is_whole(path):
                return path
            logger.warning("%s is incomplete: using the checkpoint before it", path)
            if path.name in (LAST, PREVIOUS):
                path.replace(path.with_name(f"{path.name}.damaged"))
        if found:
            raise UserError(f"{self.path}: none of its {len(found)} checkpoints is whole; a new run needs another --output_dir")
        return None
