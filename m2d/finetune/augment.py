"""Augmentation of log-mel batches for fine-tuning. Every draw comes from the generator given: a run is a function of its seed."""

import numpy as np
import torch
import torch.nn.functional as F

#: Random resize crop: the size of the area that crops are taken from, and the range of crop sizes, as shares of the input.
_AREA = (1.0, 1.5)
_CROP = (0.6, 1.5)


def random_resize_crop(lms: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Stretch and shift each clip in time and frequency (Niizumi et al., BYOL for Audio, TASLP 2023, section III-B).

    A crop of random size is taken at a random place of an area, wider than the clip in its middle, and resized to the input.

    Args:
        lms: normalised log-mel `[B, 1, bands, frames]`; the area around it is 0, the mean.

    Returns:
        the same shape.
    """
    bands, frames = lms.shape[-2:]
    height, width = int(bands * _AREA[0]), int(frames * _AREA[1])
    top, left = (height - bands) // 2, (width - frames) // 2
    area = F.pad(lms, (left, width - frames - left, top, height - bands - top))
    resized = torch.empty_like(lms)
    for i in range(len(lms)):
        h = max(1, int(bands * min(rng.uniform(*_CROP), 1.0)))
        w = max(1, int(frames * rng.uniform(*_CROP)))
        y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
        crop = area[i : i + 1, :, y : y + h, x : x + w]
        resized[i] = F.interpolate(crop, size=(bands, frames), mode="bicubic", align_corners=True)[0]
    return resized


def spec_augment(lms: torch.Tensor, freq_mask: int, time_mask: int, rng: np.random.Generator) -> torch.Tensor:
    """Set one run of bands and one of frames of each clip to 0, the mean (Park et al., SpecAugment, Interspeech 2019).

    Args:
        lms: normalised log-mel `[B, 1, bands, frames]`.
        freq_mask, time_mask: longest runs; at most half of an axis. Lengths from 0 on are equally likely.
    """
    lms = lms.clone()
    for axis, longest in ((2, freq_mask), (3, time_mask)):
        size = lms.shape[axis]
        lengths = rng.integers(0, min(longest, size // 2) + 1, len(lms))
        starts = rng.integers(0, size - lengths + 1)
        places = np.arange(size)
        hidden = (places >= starts[:, None]) & (places < (starts + lengths)[:, None])
        shape = [len(lms), 1, 1, 1]
        shape[axis] = size
        lms.masked_fill_(torch.from_numpy(hidden).view(shape).to(lms.device), 0.0)
    return lms


def mixup(lms: torch.Tensor, targets: torch.Tensor, alpha: float, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each clip and its target with another of the batch (Zhang et al., mixup, ICLR 2018).

    Args:
        lms: `[B, 1, bands, frames]`, mixed in the log domain.
        targets: float `[B, …]`.
        alpha: of the beta distribution that the clip's share is drawn from; 0: no mixing.
    """
    if alpha <= 0:
        return lms, targets
    others = torch.from_numpy(rng.permutation(len(lms))).to(lms.device)
    share = torch.from_numpy(rng.beta(alpha, alpha, len(lms)).astype(np.float32)).to(lms.device)

    def mixed(values: torch.Tensor) -> torch.Tensor:
        weight = share.view(-1, *[1] * (values.ndim - 1))
        return values * weight + values[others] * (1 - weight)

    return mixed(lms), mixed(targets)
