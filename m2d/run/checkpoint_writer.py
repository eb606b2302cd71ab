"""Writes checkpoints in the background and atomically; write errors are logged, and training continues."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ..checkpoint.file import checkpoints_in, save_atomically
from ..utils.atomic_file import open_atomic
from .folder import BEST, LAST, PREVIOUS

logger = logging.getLogger("m2d")


def host_copy(value):
    """A copy of nested dicts, lists and tuples, with copies of all tensors in host memory."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(host_copy(v) for v in value)
    return value


class CheckpointWriter:
    """Writes a run's checkpoints into its folder.

    `last.pth` is replaced by rename, and the one before it is kept as `last-previous.pth`. A write that fails is
    logged, and no earlier checkpoint is changed.

    Args:
        folder: the run's folder.
        save_minutes: time between writes of last.pth.
        keep_last: how many of the newest checkpoint-N.pth to keep; 0: all.

    Attributes:
        failed: the last write failed.
    """

    def __init__(self, folder: Path, save_minutes: float, keep_last: int = 0):
        self.folder, self._keep_last = folder, keep_last
        self._seconds = save_minutes * 60
        self._saved_at = time.monotonic()
        self._thread: threading.Thread | None = None
        self.failed = False

    def due(self) -> bool:
        """Whether it is time for last.pth."""
        return time.monotonic() - self._saved_at >= self._seconds

    def save(
        self,
        state: dict,
        epoch: int | None = None,
        wait: bool = False,
        is_best: bool = False,
        then: Callable[[Path], None] | None = None,
    ) -> None:
        """Write last.pth and, with an epoch, checkpoint-{epoch}.pth; training waits for the copy to host memory only.

        While an earlier write is still running, a last.pth that nobody waits for and that is not the best is skipped.

        Args:
            state: the run's state; it is copied, so training may continue when this returns.
            epoch: the number of the published checkpoint.
            wait: return only when the files are on the disk.
            is_best: also write checkpoint-best.pth.
            then: called with the published checkpoint's path when it is on the disk.
        """
        if self._thread is not None and self._thread.is_alive() and epoch is None and not (wait or is_best):
            return
        self.finish()
        on_host = host_copy(state)
        self._saved_at = time.monotonic()
        self._thread = threading.Thread(target=self._write, args=(on_host, epoch, is_best, then), name="checkpoint writer")
        self._thread.start()
        if wait:
            self.finish()

    def finish(self) -> None:
        """Wait until what is being written is on the disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, state: dict, epoch: int | None, is_best: bool, then: Callable[[Path], None] | None) -> None:
        path = self.folder / (LAST if epoch is None else f"checkpoint-{epoch}.pth")
        newest = self.folder / "last.new.pth"
        try:
            if epoch is None:
                save_atomically(state, newest)
            else:
                save_atomically(state, path)
                _link(path, newest)
            self._rotate(newest)
            if is_best:
                _link(self.folder / LAST, newest)
                newest.replace(self.folder / BEST)
            self._remove_old()
            self.failed = False
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError for some write errors
            self.failed = True
            logger.error("%s could not be written, training continues: %s", path, error)
            return
        if then is not None:
            then(path)

    def _rotate(self, newest: Path) -> None:
        last = self.folder / LAST
        if last.exists():
            last.replace(self.folder / PREVIOUS)
        newest.replace(last)

    def _remove_old(self) -> None:
        if self._keep_last:
            for path in checkpoints_in(self.folder)[: -self._keep_last]:
                path.unlink()


def _link(path: Path, name: Path) -> None:
    """Give a file a second name; a copy where the file system has no links."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        with path.open("rb") as source, open_atomic(name) as copy:
            shutil.copyfileobj(source, copy)
