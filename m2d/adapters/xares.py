"""X-ARES' encoder (Zhang et al., X-ARES, Interspeech 2025).

Its program takes the name of this module:

    export M2D_WEIGHTS=CHECKPOINT
    python -m xares.run m2d.adapters.xares tasks.esc50_task
"""

import os

import torch
from torch import nn

from ..inference.runtime import RuntimeM2D


class M2DEncoder(nn.Module):
    """Waveforms to features per time step.

    Args:
        weights: checkpoint, as RuntimeM2D takes it; None: the one that the environment variable M2D_WEIGHTS names.

    Attributes:
        sampling_rate: Hz.
        output_dim: width of the features.
        hop_size_in_ms: from one time step to the next.

    Raises:
        FileNotFoundError, ValueError: no checkpoint is named, or it cannot be used.
    """

    def __init__(self, weights: str | None = None):
        super().__init__()
        weights = weights or os.environ.get("M2D_WEIGHTS")
        if not weights:
            raise ValueError("no weights are named: set M2D_WEIGHTS to a checkpoint")
        self.runtime = RuntimeM2D(weight_file=weights)
        self.sampling_rate = self.runtime.sample_rate
        self.output_dim = self.runtime.cfg.feature_d
        self.hop_size_in_ms = self.runtime.cutting.patch * self.runtime.front_end.hop_size * 1000 / self.sampling_rate

    @torch.no_grad()
    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` or `[samples]` of any length to `[B, T, output_dim]`."""
        return self.runtime(audio if audio.ndim == 2 else audio[None])
