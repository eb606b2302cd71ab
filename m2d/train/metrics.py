"""Figures of a run: losses and gradient norms between reports, speed, and what is left where they are not finite."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..checkpoint.file import save_atomically
from ..data.batch import Batch
from ..data.dataset import AudioDataset
from .distributed.collectives import gather, sum_over_ranks

T = TypeVar("T")
#: The order in which checkpoints of earlier versions hold the sums of an epoch's losses.
_EARLIER_ORDER = ("loss", "loss_m2d", "loss_off")
NAN_REPORT = "nan_report.pt"

logger = logging.getLogger("m2d")


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient that is not a finite number."""


class LossMeter:
    """Sums of an epoch's losses, kept on the device between reports.

    Args:
        state: what `state_dict()` of an interrupted epoch's meter gave.

    Attributes:
        recent, norms: losses of each step by name, and the gradient norm of each update, since the last report.
        skipped: clips that were skipped in this epoch (--skip_bad_files).
    """

    def __init__(self, state: Mapping[str, Any] | None = None):
        state = state or {"sums": None, "count": 0, "skipped": 0}
        sums = state["sums"] or {}
        self.sums: dict[str, float] = dict(sums if isinstance(sums, Mapping) else zip(_EARLIER_ORDER, sums, strict=False))
        self.count, self.skipped = state["count"], state["skipped"]
        self.recent: list[Mapping[str, torch.Tensor]] = []
        self.norms: list[torch.Tensor] = []
        self._batches: list[tuple[torch.Tensor, int]] = []

    def add(self, losses: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Count one step's losses (scalars on the device) and remember its samples."""
        self.recent.append(losses)
        self._batches.append((batch.index, batch.skipped))

    @property
    def unreported(self) -> int:
        """Steps since the last report."""
        return len(self.recent)

    def report(self, norms_may_overflow: bool = False) -> dict[str, float]:
        """Mean losses over all ranks since the last report, by name. The host waits for the device here.

        Args:
            norms_may_overflow: ignore gradient norms that are not finite: GradScaler handles them.

        Raises:
            NonFiniteLoss: on every rank, where a loss or a gradient of one of them is not finite.
        """
        recent = self._recent_losses().double()
        skipped = sum(skipped for _, skipped in self._batches)
        summed = sum_over_ranks(torch.cat([recent.sum(dim=0), torch.tensor([len(recent), skipped], dtype=torch.float64)]))
        if not summed.isfinite().all():
            raise NonFiniteLoss(f"losses of the last {len(recent)} steps: {recent[:, 0].tolist()}")
        if not norms_may_overflow and not torch.stack(self.norms).isfinite().all():
            raise NonFiniteLoss(f"gradient norms of the last {len(self.norms)} updates: {torch.stack(self.norms).tolist()}")
        *sums, steps, skipped = summed.tolist()
        names = list(self.recent[0])
        self.sums = {name: self.sums.get(name, 0.0) + total for name, total in zip(names, sums, strict=True)}
        self.count += int(steps)
        self.skipped += int(skipped)
        self.recent.clear()
        self.norms.clear()
        self._batches.clear()
        return {name: total / steps for name, total in zip(names, sums, strict=True)}

    def _recent_losses(self) -> torch.Tensor:
        """Losses of the steps since the last report, float32 `[steps, losses]` on the host."""
        return torch.stack([torch.stack(tuple(losses.values())) for losses in self.recent]).cpu()

    def means(self) -> dict[str, float]:
        """Means over the epoch so far, by the names of log.txt."""
        means = {f"train_{name}": total / self.count for name, total in self.sums.items()}
        return means | ({"skipped_files": self.skipped} if self.skipped else {})

    def state_dict(self) -> dict[str, object]:
        """What the rest of an interrupted epoch needs."""
        return {"sums": self.sums or None, "count": self.count, "skipped": self.skipped}

    # ---------------------------------------------------------------- numbers that are not finite

    def suspects(self) -> tuple[int, list[int]]:
        """This rank's first unreported step with a loss, else update with a gradient, that is not finite.

        Returns:
            the step, counted from the last report (beyond all steps where there is none), and its sample indices.
        """
        for step, losses in enumerate(self._recent_losses()):
            if not losses.isfinite().all():
                return step, self._batches[step][0].tolist()
        per_update = len(self._batches) // max(len(self.norms), 1)
        for number, norm in enumerate(self.norms):
            if not norm.isfinite():
                group = self._batches[number * per_update : (number + 1) * per_update]
                return number * per_update, torch.cat([index for index, _ in group]).tolist()
        return len(self.recent), []

    def report_bad_numbers(self, folder: Path, update: int, data: AudioDataset, error: NonFiniteLoss, is_main: bool) -> None:
        """Rank 0 writes nan_report.pt and logs what to try; checkpoints stay as they are. To be called on every rank.

        The report is a dict: `update` (updates done), `error`, `files` (names of the batch), and `losses` `[steps, losses]`
        and `gradient_norms` `[updates]` since the report before.
        """
        step, indices = self.suspects()
        everyone = gather((step, data.names(indices)))
        if not is_main:
            return
        first = min(step for step, _ in everyone)  # later steps are bad because the weights are
        files = [name for step, names in everyone if step == first for name in names]
        report = {
            "update": update,
            "error": str(error),
            "files": files,
            "losses": self._recent_losses().tolist(),
            "gradient_norms": torch.stack(self.norms).tolist() if self.norms else [],
        }
        path = folder / NAN_REPORT
        try:
            save_atomically(report, path)
        except (OSError, RuntimeError) as failed:
            logger.error("%s could not be written: %s", path, failed)
        logger.error(
            "stopped: a loss or gradient is not a finite number, within the last %d steps before update %d. %s holds the "
            "losses, the gradient norms and the batch's %d files. Check whether a file holds NaN (python -m util.check_data); "
            "once it is replaced, the same command with --auto_resume resumes from the last checkpoint, which is good. "
            "If the data are sound, continue in another folder with --bf16 or a lower --blr: "
            "--resume %s --force_start_epoch -1 --output_dir …",
            self.unreported,
            update + 1,
            path,
            len(files),
            folder / "last.pth",
        )


class Throughput:
    """Speed since the last report: clips per second, share of time spent waiting for data, time left."""

    def __init__(self, clips_per_step: int):
        self.clips_per_step = clips_per_step
        self._begin = time.perf_counter()
        self._waited, self._steps = 0.0, 0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; counts each as a step, and the time spent waiting for it."""
        batches = iter(batches)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._waited += time.perf_counter() - begin
            self._steps += 1
            yield batch

    def so_far(self, steps_left: int) -> tuple[float, timedelta]:
        """(seconds, time that the steps left would take) since the last report, which stays the last one."""
        elapsed = time.perf_counter() - self._begin
        return elapsed, timedelta(seconds=round(elapsed / max(self._steps, 1) * steps_left))

    def report(self, steps_left: int) -> tuple[float, float, timedelta]:
        """(clips per second, share of waiting, time left) since the last report."""
        elapsed = max(time.perf_counter() - self._begin, 1e-9)
        left = timedelta(seconds=round(elapsed / max(self._steps, 1) * steps_left))
        result = (self._steps * self.clips_per_step / elapsed, self._waited / elapsed, left)
        self._begin, self._waited, self._steps = time.perf_counter(), 0.0, 0
        return result
