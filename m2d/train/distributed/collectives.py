"""What the ranks of a run do together: one computes for all, errors reach all, sums over all."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ...utils.errors import ReadError
from .launch import Launch

T = TypeVar("T")


def from_rank0(launch: Launch, compute: Callable[[], T]) -> T:
    """Compute once, on rank 0, and return the result, or raise the error, on all ranks."""
    if launch.world_size == 1:
        return compute()
    outcome: list = [None, None]
    if launch.is_main:
        try:
            outcome[0] = compute()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def run_on_all_ranks(launch: Launch, compute: Callable[[], T]) -> T:
    """Compute on every rank; where it fails on some, raise the lowest such rank's error on all.

    `compute` must not communicate with other ranks.
    """
    if launch.world_size == 1:
        return compute()
    result: Any = None
    error = None
    try:
        result = compute()
    except Exception as failed:
        error = failed
    _raise_first(error)
    return result


def _raise_first(error: Exception | None) -> None:
    """Raise on every rank the error of the lowest rank that has one."""
    for found in gather(error):
        if found is not None:
            raise found


def gather(value: T) -> list[T]:
    """Every rank's value, by rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def lockstep(items: Iterable[T]) -> Iterator[T]:
    """Each rank's items, equally many on each; where one rank cannot get its next one, all raise before that item.

    Raises:
        ReadError: with the message of the rank that failed.
    """
    items = iter(items)
    while True:
        item, error = None, None
        try:
            item = next(items, None)
        except (OSError, ValueError) as failed:
            error = ReadError(str(failed))
        if sum_over_ranks(torch.tensor(int(error is not None))):
            _raise_first(error)
        if item is None:
            return
        yield item


class _Gather(torch.autograd.Function):
    """All ranks' rows; the gradient of this rank's own rows, times a factor, comes back."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, factor: float) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        ctx.first, ctx.count, ctx.factor = dist.get_rank() * len(rows), len(rows), factor
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][ctx.first : ctx.first + ctx.count] * ctx.factor, None


def gather_rows(rows: torch.Tensor, published: bool = False) -> torch.Tensor:
    """Rows `[B, D]` of every rank, by rank: `[ranks * B, D]`, for a loss that each rank computes of all of them.

    DDP means gradients over the ranks, and each rank has the gradient of its own rows alone: they are multiplied by the number
    of ranks, so that the mean is the gradient of one process with all rows.

    Args:
        rows: this rank's, equally many on each.
        published: do not multiply: the mean is then 1/ranks of that gradient.
    """
    return _Gather.apply(rows, 1.0 if published else float(dist.get_world_size()))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum over all ranks, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values
