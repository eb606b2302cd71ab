"""Samples of a pre-training run: crops of the clips that the sampler's keys ask for, read a batch at a time.

The loader's workers only read. Noise mixing and normalisation (`prepare`) take a whole batch, on the device.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..audio.logmel import EPS
from .batch import Batch
from .rng import Purpose, uniform
from .sampler import NoiseOrder, SampleKey
from .store import ClipStore, Reader, check_finite, read_replacing


class AudioDataset(Dataset):
    """Crops of clips, each with a background noise crop where a noise list is given.

    A subclass that adds something to a sample extends `read`, or `added` where it does not lie in the clip's file.

    Args:
        clips: the clips to learn from.
        input_frames: length of a crop.
        seed: the run's seed.
        noise: background noise clips.
        random_crop: crop at random starts; otherwise at the clips' beginning.
        min_ds_size: lists shorter than this are repeated, in order, until they have exactly this many entries.

    Attributes:
        target_width: width of the offline target that a subclass adds (E of M2D-X and its kin).
        weights: sampling weight of each sample, float64 `[len(self)]`, where the list gives them.
        metadata: what a checkpoint is to keep of the data, such as the names of classes.
        digests: hashes of what is learned from beside the lists, by the flag that names it.
        skip_bad_files: replace a clip that cannot be read by the next one; batches count them in `skipped`.
    """

    target_width: int | None = None
    weights: np.ndarray | None = None
    metadata: Mapping[str, object] = MappingProxyType({})
    digests: Mapping[str, str] = MappingProxyType({})
    skip_bad_files = False

    def __init__(
        self,
        clips: ClipStore,
        input_frames: int,
        seed: int,
        noise: ClipStore | None = None,
        random_crop: bool = True,
        min_ds_size: int = 0,
    ):
        self.clips, self.noise = clips, noise
        self.input_frames, self.seed, self.random_crop = input_frames, seed, random_crop
        self.size = max(len(clips), min_ds_size)
        self.noise_order = None if noise is None else NoiseOrder(seed, max(len(noise), min_ds_size))

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, keys: Sequence[SampleKey]) -> Batch:
        """The batch that these keys of one epoch ask for."""
        epochs, positions, indices = np.array(keys, dtype=np.int64).T
        epoch = int(epochs[0])
        places = self._places(epoch, positions, Purpose.CROP)
        arrays, skipped = self._readable(self._read_and_name, self.clips, indices, places)
        others = self.added(arrays.pop("clips"), epoch, positions)
        if self.noise is not None and self.noise_order is not None:
            places = self._places(epoch, positions, Purpose.NOISE_CROP)
            noise, more = self._readable(self._read_noise, self.noise, self.noise_order(epoch, positions), places)
            arrays, skipped = arrays | noise, skipped + more
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name in ("clean", "noise"):
            if name in tensors:
                tensors[name] = tensors[name].unsqueeze(1)
        return Batch(
            **tensors,
            **others,
            epoch=epoch,
            first=int(positions[0]),
            position=torch.from_numpy(positions.copy()),
            index=torch.from_numpy(indices.copy()),
            skipped=skipped,
        )

    def __getitem__(self, i: int) -> Batch:
        """Sample i as epoch 0 would give it at position i, for looking at: a batch of one."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        return self.__getitems__([SampleKey(0, i, i)])

    def read(self, clips: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        """Read a batch's clips: at least `clean` `[B, n_mels, input_frames]`.

        Args:
            clips: indices into the list of clips, int64 `[B]`.
            u: where each crop starts among all valid starts, float64 `[B]` in [0, 1).
        """
        return {"clean": self.clips.read_crops(clips, u, self.input_frames, repeat=False)}

    def added(self, clips: np.ndarray, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """What a batch holds beside what `read` gives, by the names of Batch's fields.

        Args:
            clips: the clips that were read, int64 `[B]`.
            epoch, positions: their places in the run.
        """
        return {}

    def _read_and_name(self, clips: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        return self.read(clips, u) | {"clips": clips}

    def _read_noise(self, clips: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        return {"noise": self.noise.read_crops(clips, u, self.input_frames, repeat=True)}

    def _readable(self, read: Reader, store: ClipStore, samples: np.ndarray, u: np.ndarray) -> tuple[dict[str, np.ndarray], int]:
        """Read samples of a store; also how many bad clips were skipped for them."""

        def read_finite(clips: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
            arrays = read(clips, u)
            for array in arrays.values():
                check_finite(store, clips, array)
            return arrays

        skip = self.skip_bad_files
        return read_replacing(read_finite if skip else read, samples % len(store), u, len(store), skip)

    def names(self, indices: torch.Tensor | np.ndarray) -> list[str]:
        """Where the samples of a batch's `index` come from ("data/x.csv row 17: fsd/17.npy"), for error reports."""
        return [self.clips.where(int(i) % len(self.clips)) for i in indices]

    def _places(self, epoch: int, positions: np.ndarray, purpose: Purpose) -> np.ndarray:
        return uniform(self.seed, epoch, positions, purpose) if self.random_crop else np.zeros(len(positions))


def prepare(
    clean: torch.Tensor,
    noise: torch.Tensor | None,
    stats: tuple[float, float],
    noise_stats: tuple[float, float] | None = None,
    noise_ratio: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise a batch and mix its background noise in, on the device where it lies.

    With mean-subtracted clip x and noise n, the mixed clip is `log(max(r*exp(n) + (1-r)*exp(x), eps))`.

    Args:
        clean, noise: crops and, where noise is mixed in, noise crops, `[B, 1, n_mels, frames]`.
        stats: mean and std of the main data set.
        noise_stats: mean and std of the noise data set.
        noise_ratio: r, in [0, 1]; 0 mixes nothing.

    Returns:
        (clean, mixed): float32 `[B, 1, n_mels, frames]`, both divided by the main std; one tensor where nothing is mixed.
    """
    mean, std = stats
    clean = _float32(clean) - mean
    if noise_ratio == 0 or noise is None:
        clean = clean / std
        return clean, clean
    mixed = _float32(noise) - (noise_stats or stats)[0]
    if noise_ratio < 1:
        # The sum in the log domain: exp() of a value far above the mean would overflow.
        mixed = torch.logaddexp(mixed + math.log(noise_ratio), clean + math.log(1 - noise_ratio)).clamp(min=math.log(EPS))
    return clean / std, mixed / std


def _float32(crops: torch.Tensor) -> torch.Tensor:
    return crops.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
