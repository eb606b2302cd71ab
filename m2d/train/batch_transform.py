"""From a loaded batch to a model's inputs, on the device: noise, normalisation, offline target and mask."""

from dataclasses import dataclass
from typing import Any, cast

import torch

from ..data.batch import Batch
from ..data.dataset import prepare
from ..data.rng import Purpose, random_bits
from ..models.masking import MaskPlan, continuous_plan, random_plan


@dataclass(frozen=True)
class MaskRule:
    """Which patches of a sample are masked: a function of (seed, epoch, position).

    `run` > 0: whole time columns in runs of this length; 0: at random.
    """

    grid_size: tuple[int, int]
    mask_ratio: float
    seed: int
    run: int = 0

    def __call__(self, epoch: int, position: torch.Tensor) -> MaskPlan:
        """The plan for samples at `position` `[B]` of an epoch, on the device of `position`."""
        rows, columns = self.grid_size
        count = columns - self.run + 1 if self.run else rows * columns
        scores = random_bits(self.seed, epoch, position, Purpose.MASK, count)
        if self.run:
            return continuous_plan(scores, self.grid_size, self.run, self.mask_ratio)
        return random_plan(scores, self.mask_ratio)


@dataclass(frozen=True)
class BatchTransform:
    """Makes the arguments of a model's forward from a loaded batch.

    The student sees the mixed clip and the teacher the clean one (Niizumi et al., 2024, section IV), or the other way
    round with `swap_inputs`. `teacher` is a RuntimeM2D; `stats` and `noise_stats` are (mean, std).
    """

    device: torch.device
    mask: MaskRule
    stats: tuple[float, float]
    noise_stats: tuple[float, float] | None = None
    noise_ratio: float = 0.0
    swap_inputs: bool = False
    teacher: Any = None

    def __call__(self, batch: Batch) -> tuple:
        """`(imgs, plan)`, or `(imgs, offline target, plan)` where there is a teacher or the batch has a target."""
        batch = batch.to(self.device)
        teacher_input, student_input = prepare(batch.clean, batch.noise, self.stats, self.noise_stats, self.noise_ratio)
        if self.swap_inputs:
            teacher_input, student_input = student_input, teacher_input
        plan = self.mask(batch.epoch, batch.position)
        if self.teacher is None and batch.target is None:
            return student_input, plan
        return student_input, self._offline_target(batch, teacher_input), plan

    def clean(self, batch: Batch) -> torch.Tensor:
        """The clean clips of a batch alone, normalised `[B, 1, n_mels, frames]`."""
        return prepare(batch.clean.to(self.device, non_blocking=True), None, self.stats)[0]

    def _offline_target(self, batch: Batch, teacher_input: torch.Tensor) -> torch.Tensor:
        if self.teacher is None:
            return cast(torch.Tensor, batch.target)
        with torch.no_grad():
            return self.teacher.encode_lms(teacher_input)
