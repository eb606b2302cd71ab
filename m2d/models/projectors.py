"""M2D-CLAP's projectors: from an encoder's patch tokens `[B, N, D]` to one vector a clip `[B, D]`."""

from functools import partial

import torch
from torch import nn

from .transformer.block import make_blocks, run_blocks

SemanticNorm = partial(nn.LayerNorm, eps=1e-5)


class MeanProjector(nn.Module):
    """The mean over tokens."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, N, D]` to `[B, D]`."""
        return tokens.mean(dim=1)


class MLPProjector(nn.Sequential):
    """The mean over tokens through two linear layers (Niizumi et al., 2024b, section III-B)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[B, N, D]` to `[B, D]`."""
        return super().forward(input.mean(dim=1))


class SemanticProjector(nn.Module):
    """A token that attends to all patch tokens through blocks of one head (Niizumi et al., 2025, section III-B).

    There are no positions, so the order of the tokens makes no difference, and the token can come last: the last block
    computes it alone.

    Args:
        width: width D of a token.
        depth: blocks.
        mlp_ratio: width of the MLPs' hidden layer, relative to a token's; None: 1 up to two blocks, 2 above.
    """

    def __init__(self, width: int, depth: int = 1, mlp_ratio: float | None = None):
        super().__init__()
        ratio = (1.0 if depth <= 2 else 2.0) if mlp_ratio is None else mlp_ratio
        self.sem_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.sem_blocks = make_blocks(depth, width, num_heads=1, mlp_ratio=ratio, norm_layer=SemanticNorm)
        self.norm = SemanticNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, N, D]` to `[B, D]`."""
        x = torch.cat([tokens, self.sem_token.to(tokens.dtype).expand(len(tokens), -1, -1)], dim=1)
        return self.norm(run_blocks(self.sem_blocks, x, tokens.shape[1])[-1][:, 0])


def audio_projector(width: int, sem_mode: int = 0) -> nn.Module:
    """A training model's audio projector: the MLP for 0 blocks, else the semantic projector."""
    return SemanticProjector(width, sem_mode) if sem_mode else MLPProjector(width)
