"""A run's folder: one run at a time, its settings in run.json, and its newest whole checkpoint."""

import fcntl
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

from . import __version__
from .checkpoint_file import checkpoints_in, is_whole
from .errors import UserError

LAST, PREVIOUS = "last.pth", "last-previous.pth"

logger = logging.getLogger("m2d")


def existing_run(wanted: Path) -> Path:
    """The newest run of this name whatever its date: where a run that began on another day goes on."""
    dated = re.fullmatch(r"(.+-)\d{6}(-.*)", wanted.name)
    if wanted.exists() or dated is None or not wanted.parent.is_dir():
        return wanted
    begin, end = dated.groups()
    pattern = re.compile(re.escape(begin) + r"(\d{6})" + re.escape(end))
    runs = [path for path in wanted.parent.iterdir() if pattern.fullmatch(path.name) and (path / "run.json").exists()]
    return max(runs, key=lambda path: pattern.fullmatch(path.name)[1], default=wanted)


class RunFolder:
    """The folder of a run, held by one process group at a time.

    Args:
        path: the folder.
        auto_resume: go on with the run that is in the folder, if there is one.

    Raises:
        UserError: the folder holds a run and `auto_resume` is off, or another process holds it.
    """

    def __init__(self, path: Path, auto_resume: bool):
        self.path, self._lock = path, None
        if self.holds_run():
            if not auto_resume:
                raise UserError(
                    f"{path} holds a run already: --auto_resume goes on with it; --output_dir names another folder for a new one"
                )
            self.claim()

    def holds_run(self) -> bool:
        """Whether a run has begun in the folder."""
        return (self.path / "run.json").exists()

    def claim(self) -> None:
        """Make the folder, and hold it until this process ends, however it ends.

        Raises:
            UserError: another process holds it, or it cannot be written.
        """
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / "run.lock").open("a+")
        except OSError as error:
            raise UserError(f"{self.path}: the run's folder cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"{self.path} is in use by {lock.read().strip() or 'another process'}") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        lock.flush()
        self._lock = lock

    def record(self, settings: Mapping[str, object]) -> None:
        """Write the settings, and when, with what and by which command the run was started, to run.json."""
        path = self.path / "run.json"
        record = json.loads(path.read_text()) if path.exists() else {"starts": []}
        record["settings"] = dict(settings)
        versions = {"m2d": __version__, "torch": torch.__version__, "python": platform.python_version()}
        record["starts"].append({"time": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "command": sys.argv, **versions})
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(record, indent=1))
        aside.replace(path)

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole; torn ones are passed over with a warning."""
        if not self.holds_run():
            return None
        for path in (self.path / LAST, self.path / PREVIOUS, *reversed(checkpoints_in(self.path))):
            if path.exists():
                if is_whole(path):
                    return path
                logger.warning("%s is not whole: going back to the checkpoint before it", path)
        return None
