"""Random numbers of a run: a function of (seed, epoch, position, purpose), and of nothing else.

They are looked up, not drawn from a stream: a hash of the key gives the same bits in any worker, on any rank, on any
device and after any interruption. The position is the sample's place in the epoch's order, so a sample that weighted
sampling draws twice gets another crop and another mask each time.
The hash is the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied once per key.
"""

from enum import IntEnum

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
    CAPTION = 9
    LIST_ORDER = 10
    MASK_SHAPE = 11


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
    positions = torch.from_numpy(np.ascontiguousarray(position, dtype=np.int64))
    bits = random_bits(seed, epoch, positions, purpose)[:, 0].numpy()
    return (bits >> 10) * 2.0**-53


def choice(u: np.ndarray | float, count: np.ndarray | int) -> np.ndarray:
    """Map uniform numbers in [0, 1) to integers in [0, count), each equally likely."""
    return np.minimum(np.asarray(u * count).astype(np.int64), np.asarray(count) - 1)


def permutation(seed: int, epoch: int, purpose: Purpose, count: int, cycle: int = 0) -> np.ndarray:
    """A random order of `range(count)`: int64 `[count]`, a function of the arguments alone."""
    key = random_bits(seed, epoch, torch.tensor([cycle]), purpose).item()
    # Sorting hashes, not NumPy's shuffle: that one's stream may change with NumPy's version.
    return np.argsort(random_bits(key, cycle, torch.arange(count), purpose)[:, 0].numpy(), kind="stable")
