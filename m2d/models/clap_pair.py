"""M2D-CLAP's later stages: an audio encoder with a projector, and a text encoder, trained to agree (Niizumi et al., 2025)."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from .clap import MAX_LOGIT_SCALE, agreement
from .masking import Masking
from .projectors import audio_projector
from .text_encoder import TextEncoder
from .vit import AudioViT


class ClapPair(nn.Module):
    """An audio encoder and a text encoder; the names in its state dict are the released files'.

    The text encoder is trained in evaluation mode, without dropout, so that a step is a function of its clips and texts.

    Args:
        backbone: the audio encoder, which gets a projector. Without gradient unless `train_audio`.
        text_encoder: the text encoder. Where its width is not the audio encoder's, a linear layer projects the texts.
        sem_mode: blocks of the audio projector; 0: the MLP.
        train_audio: train the audio encoder too.
        truncate: cut texts that are longer than the text encoder takes.

    Attributes:
        logit_scale: log of the cosines' factor, kept in its bounds by `clip_logit_scale` after each update.
        gather: makes one batch of those of all processes, in training.
    """

    loss_names = ("loss",)
    has_ema_target = False
    is_contrastive = True
    gather: Callable[[torch.Tensor], torch.Tensor] = nn.Identity()

    def __init__(
        self, backbone: AudioViT, text_encoder: TextEncoder, sem_mode: int = 1, train_audio: bool = False, truncate: bool = False
    ):
        super().__init__()
        width = backbone.embed_dim
        self.backbone: Any = backbone
        self.text_encoder = text_encoder
        for parameter in backbone.parameters():
            parameter.requires_grad_(train_audio and parameter.requires_grad)
        self.backbone.audio_proj = audio_projector(width, sem_mode)
        self.text_proj = nn.Identity() if text_encoder.width == width else nn.Linear(text_encoder.width, width)
        self.logit_scale = nn.Parameter(torch.tensor(MAX_LOGIT_SCALE))
        self.train_audio, self.truncate = train_audio, truncate

    def train(self, mode: bool = True) -> "ClapPair":
        """As for any module; the text encoder stays in evaluation."""
        super().train(mode)
        self.text_encoder.eval()
        return self

    @torch.no_grad()
    def clip_logit_scale(self) -> None:
        """Keep `logit_scale` from 0 to 4.6052, that is, the factor from 1 to 100."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def embed_latent(self, latent: torch.Tensor) -> torch.Tensor:
        """Audio embeddings `[B, D]`, not normalised, from the encoder's outputs `[B, 1 + keep, D]`, class token first."""
        return self.backbone.audio_proj(self.backbone.drop_cls_token(latent))

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings `[B, D]`, not normalised.

        Raises:
            ValueError: a text is longer than the text encoder takes.
        """
        return self.text_proj(self.text_encoder(texts, self.truncate))

    def forward(self, imgs: torch.Tensor, texts: Sequence[str], mask_ratio: Masking = 0.0) -> torch.Tensor:
        """The loss of clips `[B, C, mels, frames]` with a text each, a scalar."""
        with nullcontext() if self.train_audio else torch.no_grad():
            latent = self.forward_encoder(imgs, mask_ratio)[0]
        audio, text = self.embed_latent(latent), self.embed_text(texts)
        return agreement(audio, text, self.logit_scale, self.gather if self.training else None)

    def named_losses(self, output: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss that `forward` returned, by name."""
        return {"loss": output}

    # ------------------------------------------------------------------ the audio encoder's

    @property
    def blocks(self) -> nn.Module:
        """The audio encoder's blocks."""
        return self.backbone.blocks

    @property
    def patch_embed(self) -> nn.Module:
        """The audio encoder's patch embedding."""
        return self.backbone.patch_embed

    @property
    def forward_encoder(self) -> Callable[..., tuple]:
        """The audio encoder's."""
        return self.backbone.forward_encoder

    @property
    def drop_cls_token(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The audio encoder's."""
        return self.backbone.drop_cls_token

    def grid_size(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        return self.backbone.grid_size()

    def patch_size(self) -> tuple[int, int]:
        """Mel bands and frames of a patch."""
        return self.backbone.patch_size()

    def recompute_activations(self, on: bool = True) -> None:
        """Recompute the audio encoder's activations in the backward pass."""
        self.backbone.recompute_activations(on)

    def recompute_gelu(self, on: bool = True) -> None:
        """Recompute the GELU of the audio encoder's MLPs in the backward pass."""
        self.backbone.recompute_gelu(on)

    def use_float8(self) -> None:
        """As of the audio encoder."""
        self.backbone.use_float8()

    def use_short_attention(self, on: bool = True) -> None:
        """As of the audio encoder."""
        self.backbone.use_short_attention(on)
