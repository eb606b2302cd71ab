"""Which patches of a clip are hidden: random, structured and continuous plans.

Every plan is drawn for a whole batch at once from an array of random scores, so that the caller decides where
the randomness comes from: a generator, or a hash of the sample's place in a run (see sampling.py).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F


class MaskPlan(NamedTuple):
    """Where the patches of a clip go when the visible ones are moved to the front.

    `ids_restore` `[B, L]`: the place of patch i after the move; patches at places below `keep` stay visible.
    """

    ids_restore: torch.Tensor
    keep: int

    @property
    def ids_shuffle(self) -> torch.Tensor:
        """`[B, L]`: the patch at each place, the inverse permutation of `ids_restore`."""
        return self.ids_restore.argsort(dim=1)

    @property
    def mask(self) -> torch.Tensor:
        """float32 `[B, L]`: 1 where a patch is hidden, 0 where it is visible."""
        return (self.ids_restore >= self.keep).float()


#: What a model takes as a mask: the share of hidden patches, or a fixed plan `(ids_restore [B, L], keep)`.
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
        mask_ratio: share of hidden patches, from 0 to 1.
    """
    return _plan(scores, keep_count(scores.shape[1], mask_ratio))


def structured_counts(grid_size: tuple[int, int], mask_ratio: float, u: float) -> tuple[int, int]:
    """How many whole frequency rows and time columns to strike out for a uniform number `u` in [0, 1).

    One of each stays at least, also at ratios near 1.
    """
    rows, columns = grid_size
    struck_rows = min(rows - 1, int(rows * (mask_ratio + 1 / rows) * u))
    struck_columns = int(columns * max(mask_ratio + 0.5 / columns - struck_rows / rows, 0.0))
    return struck_rows, min(struck_columns, columns - 1)


def structured_plan(row_scores: torch.Tensor, column_scores: torch.Tensor, mask_ratio: float, u: float) -> MaskPlan:
    """Whole frequency rows and time columns are hidden: the same number in every clip, at random places.

    Args:
        row_scores: random numbers `[B, F]`.
        column_scores: random numbers `[B, T]`.
        mask_ratio: share of hidden patches aimed at.
        u: uniform number in [0, 1), one per batch, that divides the hiding between rows and columns.
    """
    rows, columns = row_scores.shape[1], column_scores.shape[1]
    struck_rows, struck_columns = structured_counts((rows, columns), mask_ratio, u)
    row_hidden = row_scores.argsort(dim=1).argsort(dim=1) < struck_rows
    column_hidden = column_scores.argsort(dim=1).argsort(dim=1) < struck_columns
    hidden = (row_hidden[:, :, None] | column_hidden[:, None, :]).flatten(1)
    return _plan(hidden.int(), (rows - struck_rows) * (columns - struck_columns))


def continuous_plan(start_scores: torch.Tensor, grid_size: tuple[int, int], run: int, mask_ratio: float) -> MaskPlan:
    """Whole time columns are hidden, in runs of `run` columns at random starts, until int(T·ratio) are.

    Starts come in the order of their scores (a start that comes again hides nothing new, so that drawing
    without replacement is the same); what the last run hides too many is uncovered from that run's start.

    Args:
        start_scores: random numbers `[B, T - run + 1]`, one per possible start of a run.
        grid_size: patches along (frequency, time).
        run: columns of patches per run.
        mask_ratio: share of hidden columns.
    """
    rows, columns = grid_size
    order = start_scores.argsort(dim=1, stable=True).argsort(dim=1)
    first_cover = F.pad(order, (run - 1, run - 1), value=columns).unfold(1, run, 1).amin(dim=2)
    last_first = torch.arange(columns - 1, -1, -1, device=order.device)
    column_rank = (first_cover * columns + last_first).argsort(dim=1).argsort(dim=1)
    hidden = int(columns * mask_ratio)
    struck = (column_rank < hidden)[:, None, :].expand(-1, rows, -1).flatten(1)
    return _plan(struck.int(), rows * (columns - hidden))


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
