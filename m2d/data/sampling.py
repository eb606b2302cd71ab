"""Which sample, crop, noise clip and mask come at step n: a function of (seed, n) and of nothing else.

Random numbers are not drawn from a stream but looked up: a hash of (seed, epoch, position, purpose) gives
the same bits in any worker, on any rank, on any device and after any interruption. The position is the
sample's place in the epoch's order, so a sample that weighted sampling draws twice is cropped and masked anew.
The hash is the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied once per key.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB


class Purpose(IntEnum):
    """What a random number is for: one independent stream each."""

    CROP = 1
    MASK = 2
    ORDER = 3
    NOISE_ORDER = 4
    NOISE_CROP = 5
    STATISTICS = 6
    WEIGHTED = 7
    QUALITY = 8


class SampleKey(NamedTuple):
    """One sample of a run: its epoch, its place in the epoch's order, and its index in the data set."""

    epoch: int
    position: int
    index: int


def _signed(value: int) -> int:
    value = int(value) & _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX2)
    return x ^ _shift_right(x, 31)


def random_bits(seed: int, epoch: int, position: torch.Tensor, purpose: Purpose, count: int = 1) -> torch.Tensor:
    """63 random bits per (position, place) as non-negative integers.

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
        position: places in the epoch's order, int64 `[B]`, on any device.
        purpose: the stream.
        count: numbers per sample.

    Returns:
        int64 `[B, count]` on the device of `position`.
    """
    state = torch.zeros((), dtype=torch.int64, device=position.device)
    for key in (seed, epoch, int(purpose)):
        state = _mix(state ^ _signed(key))
    per_sample = _mix(state ^ position.to(torch.int64))[:, None]
    places = torch.arange(count, dtype=torch.int64, device=position.device)
    return _shift_right(_mix(per_sample ^ _mix(places)), 1)


def uniform(seed: int, epoch: int, position: np.ndarray, purpose: Purpose) -> np.ndarray:
    """Uniform numbers in [0, 1), float64 `[B]`, one per position of an epoch."""
    position = torch.from_numpy(np.ascontiguousarray(position, dtype=np.int64))
    bits = random_bits(seed, epoch, position, purpose)[:, 0].numpy()
    return (bits >> 10) * 2.0**-53


def choice(u: np.ndarray | float, count: np.ndarray | int) -> np.ndarray:
    """Map uniform numbers in [0, 1) to integers in [0, count), each equally likely."""
    return np.minimum(np.asarray(u * count).astype(np.int64), np.asarray(count) - 1)


def permutation(seed: int, epoch: int, purpose: Purpose, count: int, cycle: int = 0) -> np.ndarray:
    """A random order of `range(count)`: int64 `[count]`, a function of the arguments alone."""
    key = random_bits(seed, epoch, torch.tensor([cycle]), purpose).item()
    # Sorting hashes, not NumPy's shuffle: that one's stream may change with NumPy's version.
    return np.argsort(random_bits(key, cycle, torch.arange(count), purpose)[:, 0].numpy(), kind="stable")


class NoiseOrder:
    """Which background noise clip goes with the sample at a position of an epoch.

    Every clip of the list comes once, in random order, before any comes again
    (system.md: "each epoch goes through the noise list in a random order").
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


class EpochPlan:
    """Which samples make up each step of a run.

    An update takes `batch_size * world_size * accum_iter` consecutive entries of the epoch's order; how they
    are dealt to ranks and accumulation steps changes nothing in which samples an update sees.
    Only whole updates count: what is left at the end of an epoch's order is dropped, and since every epoch
    has an order of its own, every sample comes in some epoch.

    Args:
        samples: size of the data set.
        batch_size: samples per rank and step.
        accum_iter: steps per update.
        rank, world_size: this process among the processes of the run.
        seed: the run's seed.
        weights: sampling weights `[samples]`; given, every epoch draws with replacement in proportion to them.

    Raises:
        ValueError: there is not one whole update in an epoch.
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
    ):
        self.samples, self.batch_size, self.accum_iter = samples, batch_size, accum_iter
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.per_update = batch_size * world_size * accum_iter
        self.updates_per_epoch = samples // self.per_update
        self._cumulative = None if weights is None else np.cumsum(weights, dtype=np.float64)
        if self.updates_per_epoch == 0:
            raise ValueError(
                f"an epoch has {samples} samples, fewer than the {self.per_update} that one update takes "
                f"(batch_size {batch_size} x {world_size} processes x accum_iter {accum_iter}): "
                "lower --batch_size or --accum_iter, or raise --min_ds_size"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Forward passes per epoch and rank: a multiple of accum_iter."""
        return self.updates_per_epoch * self.accum_iter

    def order(self, epoch: int) -> np.ndarray:
        """The sample indices of an epoch in the order they come: int64 `[samples]`."""
        if self._cumulative is None:
            return permutation(self.seed, epoch, Purpose.ORDER, self.samples)
        u = uniform(self.seed, epoch, np.arange(self.samples), Purpose.WEIGHTED)
        return np.searchsorted(self._cumulative, u * self._cumulative[-1], side="right").clip(max=self.samples - 1)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[list[SampleKey]]:
        """This rank's batches of an epoch from step `first_step` on."""
        order = self.order(epoch)
        stride = self.batch_size * self.world_size
        for step in range(first_step, self.steps_per_epoch):
            begin = step * stride + self.rank * self.batch_size
            yield [SampleKey(epoch, p, int(order[p])) for p in range(begin, begin + self.batch_size)]
