"""From a loaded batch to a model's inputs, on the device: noise, normalisation, offline target and mask."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from ..data.batch import Batch
from ..data.dataset import prepare
from ..data.rng import Purpose, random_bits, uniform
from ..models.masking import Masking, continuous_plan, random_plan, structured_plan


@dataclass(frozen=True)
class MaskRule:
    """Which patches of a sample are masked: a function of (seed, epoch, position).

    `run` > 0: whole time columns in runs of this length; 0: at random. `structured`: whole frequency rows and time columns, as
    many of each for all of an update's `per_update` samples.
    """

    grid_size: tuple[int, int]
    mask_ratio: float
    seed: int
    run: int = 0
    structured: bool = False
    per_update: int = 1

    def __call__(self, epoch: int, position: torch.Tensor, first: int = 0) -> Masking:
        """The plan for samples at `position` `[B]` of an epoch, on the device of `position`; 0.0 where nothing is masked.

        `first` is the first of the positions, on the host.
        """
        rows, columns = self.grid_size
        if not self.mask_ratio:
            return 0.0
        if self.structured:
            update = np.array([first // self.per_update])
            u = float(uniform(self.seed, epoch, update, Purpose.MASK_SHAPE)[0])
            scores = random_bits(self.seed, epoch, position, Purpose.MASK, rows + columns)
            return structured_plan(scores[:, :rows], scores[:, rows:], self.mask_ratio, u)
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
        """`(imgs, plan)`, or with a teacher's features, the batch's target or its texts, `(imgs, offline target, plan)`."""
        batch = batch.to(self.device)
        teacher_input, student_input = prepare(batch.clean, batch.noise, self.stats, self.noise_stats, self.noise_ratio)
        if self.swap_inputs:
            teacher_input, student_input = student_input, teacher_input
        plan = self.mask(batch.epoch, batch.position, batch.first)
        if batch.texts is not None:
            return student_input, batch.texts, plan
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
