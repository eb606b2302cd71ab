"""The interface of PretrainedSED's transformers (Schmid et al., 2024), for frame-level fine-tuning there.

In its clone, `PredictionsWrapper(M2DWrapper("CHECKPOINT"), embed_dim=3840, seq_len=250)` adds the classifiers.
"""

from typing import cast

import torch
from torch import nn

from ..inference.runtime import RuntimeM2D


class M2DWrapper(nn.Module):
    """Waveforms to log-mel, log-mel to features per time step, and parameters by depth.

    Args:
        weights: checkpoint, as RuntimeM2D takes it.
        frames: frames of the model's input, in place of the checkpoint's: its recipes take clips of 10 s, 1001 frames.

    Attributes:
        embed_dim: width of the features, for PredictionsWrapper.

    Raises:
        FileNotFoundError, ValueError: the checkpoint cannot be used.
    """

    def __init__(self, weights: str, frames: int | None = None):
        super().__init__()
        self.m2d = RuntimeM2D(weight_file=weights, dur_frames=frames)
        self.embed_dim = self.m2d.cfg.feature_d

    def mel_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` at the model's rate to normalised log-mel `[B, 1, bands, frames]`."""
        with torch.no_grad():
            return self.m2d.to_normalized_spec(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel `[B, 1, bands, frames]` to features `[B, T, embed_dim]`."""
        return cast(torch.Tensor, self.m2d.encode_lms(x))

    def separate_params(self) -> list[list[nn.Parameter]]:
        """Parameters by depth, the last block first, for a learning rate that falls with depth.

        The final norm is with the last block; embeddings and the class token are with the first.
        """
        backbone = self.m2d.backbone
        groups = [[p for p in block.parameters() if p.requires_grad] for block in backbone.blocks]
        groups[-1] += list(backbone.norm.parameters())
        in_groups = {id(p) for group in groups for p in group}
        groups[0] += [p for p in backbone.parameters() if p.requires_grad and id(p) not in in_groups]
        return groups[::-1]
