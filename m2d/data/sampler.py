"""Which sample comes at which step, and with which background noise clip: functions of the seed and the step."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..utils.errors import UserError
from .rng import Purpose, permutation, uniform


class SampleKey(NamedTuple):
    """One sample of a run: its epoch, its place in the epoch's order, and its index in the data set."""

    epoch: int
    position: int
    index: int


class NoiseOrder:
    """Which background noise clip goes with the sample at a position of an epoch.

    Every clip of the list comes once, in random order, before any comes again.
    """

    def __init__(self, seed: int, count: int):
        self.seed, self.count = seed, count
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, epoch: int, position: np.ndarray) -> np.ndarray:
        """Noise clip indices for positions of one epoch: int64 `[B]`."""
        cycles, places = np.divmod(np.asarray(position), self.count)
        clips = np.empty(len(places), dtype=np.int64)
        for cycle in np.unique(cycles):
            here = cycles == cycle
            clips[here] = self._order(epoch, int(cycle))[places[here]]
        return clips

    def _order(self, epoch: int, cycle: int) -> np.ndarray:
        key = (epoch, cycle)
        order = self._orders.get(key)
        if order is None:
            order = permutation(self.seed, epoch, Purpose.NOISE_ORDER, self.count, cycle)
            for old in list(self._orders)[:-1]:  # other threads may be here too
                self._orders.pop(old, None)
            self._orders[key] = order
        return order


class MixedOrder:
    """The order of an epoch that takes from each of several lists a share of its own.

    Of each list every clip comes once, in random order, before any comes again, over all epochs.

    Args:
        seed: the run's seed.
        counts: clips of each list, int64 `[lists]`; the clips of all are numbered one list after the other.
        weights: how often each clip of a list comes, compared with those of the others.
        samples: entries of an epoch.

    Raises:
        UserError: a list's share of an epoch is less than one clip.
    """

    def __init__(self, seed: int, counts: np.ndarray, weights: np.ndarray, samples: int):
        self.seed, self.counts = seed, counts
        ends = np.cumsum(counts * weights)
        self.shares = np.diff(np.rint(ends / ends[-1] * samples).astype(np.int64), prepend=0)
        if not self.shares.all():
            k = int(np.argmin(self.shares))
            raise UserError(
                f"list {k + 1} of --csv_main has {counts[k]} clips and the weight {weights[k]:g}, less than one clip of an "
                f"epoch's {samples}: raise its weight"
            )

    def __call__(self, epoch: int) -> np.ndarray:
        """The clips of an epoch in the order they come: int64 `[samples]`."""
        begins = np.cumsum(self.counts) - self.counts
        clips = np.concatenate([begin + self._drawn(k, epoch) for k, begin in enumerate(begins)])
        return clips[permutation(self.seed, epoch, Purpose.ORDER, len(clips))]

    def _drawn(self, k: int, epoch: int) -> np.ndarray:
        """The epoch's clips of list k."""
        count, share = int(self.counts[k]), int(self.shares[k])
        cycles, places = np.divmod(np.arange(epoch * share, (epoch + 1) * share), count)
        drawn = np.empty(share, dtype=np.int64)
        for cycle in np.unique(cycles).tolist():
            here = cycles == cycle
            drawn[here] = permutation(self.seed, k, Purpose.LIST_ORDER, count, cycle)[places[here]]
        return drawn


class EpochSampler:
    """Which samples make up each step of a run.

    An update takes `batch_size * world_size * accum_iter` consecutive entries of the epoch's order; the split
    into ranks and accumulation steps does not change which samples an update sees.
    Only whole updates count: what is left at the end of an epoch's order is dropped, and since every epoch
    has an order of its own, every sample comes in some epoch.

    Args:
        samples: size of the data set.
        batch_size: samples per rank and step.
        accum_iter: steps per update.
        rank, world_size: this process among the processes of the run.
        seed: the run's seed.
        weights: sampling weights `[samples]`; given, every epoch draws with replacement in proportion to them.
        mixed: the order of several lists with weights of their own, in place of a permutation of all samples.

    Raises:
        UserError: there is not one whole update in an epoch.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        accum_iter: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        weights: np.ndarray | None = None,
        mixed: MixedOrder | None = None,
    ):
        self.samples, self.batch_size, self.accum_iter = samples, batch_size, accum_iter
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.per_update = batch_size * world_size * accum_iter
        self.updates_per_epoch = samples // self.per_update
        self._mixed = mixed
        self._cumulative = None if weights is None else np.cumsum(weights, dtype=np.float64)
        if self.updates_per_epoch == 0:
            raise UserError(
                f"an epoch has {samples} samples, fewer than the {self.per_update} that one update takes "
                f"(batch_size {batch_size} x {world_size} processes x accum_iter {accum_iter}): "
                "lower --batch_size or --accum_iter, or raise --min_ds_size"
            )

    @property
    def per_step(self) -> int:
        """Samples of a step, over all ranks."""
        return self.batch_size * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Forward passes per epoch and rank: a multiple of accum_iter."""
        return self.updates_per_epoch * self.accum_iter

    def order(self, epoch: int) -> np.ndarray:
        """The sample indices of an epoch in the order they come: int64 `[samples]`."""
        if self._mixed is not None:
            return self._mixed(epoch)
        if self._cumulative is None:
            return permutation(self.seed, epoch, Purpose.ORDER, self.samples)
        u = uniform(self.seed, epoch, np.arange(self.samples), Purpose.WEIGHTED)
        return np.searchsorted(self._cumulative, u * self._cumulative[-1], side="right").clip(max=self.samples - 1)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[SampleKey]]:
        """This rank's batches of an epoch from step `first_step` on."""
        order = self.order(epoch)
        for step in range(first_step, self.steps_per_epoch):
            begin = step * self.per_step + self.rank * self.batch_size
            yield [SampleKey(epoch, p, int(order[p])) for p in range(begin, begin + self.batch_size)]
