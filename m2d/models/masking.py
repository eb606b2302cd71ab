"""Which patches of a clip are masked: random, structured and continuous mask plans.

Every plan is made for a whole batch at once from an array of random scores. The caller chooses the source of randomness:
a generator (evaluation, fine-tuning), or a hash of the sample's place in a run (pre-training).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class MaskPlan(NamedTuple):
    """A permutation of each clip's patches that moves the visible ones to the front.

    Attributes:
        ids_restore: `[B, L]`, the place of patch i after the move.
        keep: the number of visible patches, at places below it.
    """

    ids_restore: torch.Tensor
    keep: int

    @property
    def ids_shuffle(self) -> torch.Tensor:
        """`[B, L]`: the patch at each place, the inverse permutation of `ids_restore`."""
        return self.ids_restore.argsort(dim=1)

    @property
    def mask(self) -> torch.Tensor:
        """float32 `[B, L]`: 1 where a patch is masked, 0 where it is visible."""
        return (self.ids_restore >= self.keep).float()


#: What a model takes as a mask: the share of masked patches, or a fixed plan `(ids_restore [B, L], keep)`.
Masking = float | tuple[torch.Tensor, int]


def keep_count(length: int, mask_ratio: float) -> int:
    """Patches that stay visible: int(L·(1 - ratio)) in floating point, as published (0.8 of 190 keeps 37)."""
    return int(length * (1 - mask_ratio))


def _plan(scores: torch.Tensor, keep: int) -> MaskPlan:
    """Keep the patches of the lowest scores."""
    ids_shuffle = scores.argsort(dim=1, stable=True)
    return MaskPlan(ids_shuffle.argsort(dim=1), keep)


def random_plan(scores: torch.Tensor, mask_ratio: float) -> MaskPlan:
    """A uniform random subset of the patches of each clip (He et al., 2022, section 3).

    Args:
        scores: independent random numbers of any type, `[B, L]`.
        mask_ratio: share of masked patches, from 0 to 1.
    """
    return _plan(scores, keep_count(scores.shape[1], mask_ratio))


def structured_counts(grid_size: tuple[int, int], mask_ratio: float, u: float) -> tuple[int, int]:
    """How many whole frequency rows and time columns to mask for a uniform number `u` in [0, 1).

    At least one row and one column stay visible, also at ratios near 1.
    """
    rows, columns = grid_size
    masked_rows = min(rows - 1, int(rows * (mask_ratio + 1 / rows) * u))
    masked_columns = int(columns * max(mask_ratio + 0.5 / columns - masked_rows / rows, 0.0))
    return masked_rows, min(masked_columns, columns - 1)


def structured_plan(row_scores: torch.Tensor, column_scores: torch.Tensor, mask_ratio: float, u: float) -> MaskPlan:
    """Whole frequency rows and time columns are masked: the same number in every clip, at random places.

    Args:
        row_scores: random numbers `[B, F]`.
        column_scores: random numbers `[B, T]`.
        mask_ratio: share of masked patches aimed at.
        u: uniform number in [0, 1), one per batch, that divides the masking between rows and columns.
    """
    rows, columns = row_scores.shape[1], column_scores.shape[1]
    masked_rows, masked_columns = structured_counts((rows, columns), mask_ratio, u)
    row_is_masked = row_scores.argsort(dim=1).argsort(dim=1) < masked_rows
    column_is_masked = column_scores.argsort(dim=1).argsort(dim=1) < masked_columns
    masked = (row_is_masked[:, :, None] | column_is_masked[:, None, :]).flatten(1)
    return _plan(masked.int(), (rows - masked_rows) * (columns - masked_columns))


def continuous_plan(start_scores: torch.Tensor, grid_size: tuple[int, int], run: int, mask_ratio: float) -> MaskPlan:
    """Whole time columns are masked, in runs of `run` columns at random starts, until int(T·ratio) are.

    Starts are taken in the order of their scores. (A repeated start would mask nothing new, so sampling without replacement
    gives the same distribution.) If the last run masks too many columns, its first ones are unmasked again.

    Args:
        start_scores: random numbers `[B, T - run + 1]`, one per possible start of a run.
        grid_size: patches along (frequency, time).
        run: columns of patches per run.
        mask_ratio: share of masked columns.
    """
    rows, columns = grid_size
    order = start_scores.argsort(dim=1, stable=True).argsort(dim=1)
    first_cover = F.pad(order, (run - 1, run - 1), value=columns).unfold(1, run, 1).amin(dim=2)
    last_first = torch.arange(columns - 1, -1, -1, device=order.device)
    column_rank = (first_cover * columns + last_first).argsort(dim=1).argsort(dim=1)
    masked = int(columns * mask_ratio)
    is_masked = (column_rank < masked)[:, None, :].expand(-1, rows, -1).flatten(1)
    return _plan(is_masked.int(), rows * (columns - masked))


def draw_random_plan(batch: int, grid_size: tuple[int, int], mask_ratio: float, device: torch.device) -> MaskPlan:
    """`random_plan` from torch's generator of the device."""
    return random_plan(torch.rand(batch, grid_size[0] * grid_size[1], device=device), mask_ratio)


def draw_structured_plan(batch: int, grid_size: tuple[int, int], mask_ratio: float, device: torch.device) -> MaskPlan:
    """`structured_plan` from torch's generators of the device and, for the batch's number, of the CPU."""
    rows, columns = (torch.rand(batch, size, device=device) for size in grid_size)
    return structured_plan(rows, columns, mask_ratio, u=torch.rand(()).item())


def draw_continuous_plan(batch: int, grid_size: tuple[int, int], mask_ratio: float, device: torch.device, run: int) -> MaskPlan:
    """`continuous_plan` from torch's generator of the device."""
    return continuous_plan(torch.rand(batch, grid_size[1] - run + 1, device=device), grid_size, run, mask_ratio)
