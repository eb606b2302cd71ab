"""M2D-CLAP: audio and captions in one space, learned beside M2D (Niizumi et al., 2024b and 2025)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .m2d import Prediction
from .m2d_x import OfflineTaskViT
from .projectors import audio_projector

#: Where logit_scale starts, and its bounds.
START_LOGIT_SCALE = math.log(1 / 0.07)
MAX_LOGIT_SCALE = 4.6052


def clap_loss(audio: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy over the similarities of a batch, a scalar, in single precision (Radford et al., 2021).

    Args:
        audio, text: embeddings `[B, D]`, row i of the one belonging to row i of the other; normalised here.
        logit_scale: log of the factor of the cosines, a scalar.

    Raises:
        ValueError: the two are not of one shape.
    """
    if audio.shape != text.shape:
        raise ValueError(f"audio embeddings are {list(audio.shape)}, text embeddings {list(text.shape)}: one of each per clip")
    with torch.autocast(audio.device.type, enabled=False):
        audio, text = F.normalize(audio.float(), dim=-1), F.normalize(text.float(), dim=-1)
        similarities = logit_scale.float().exp() * audio @ text.T
        own = torch.arange(len(similarities), device=similarities.device)
        return (F.cross_entropy(similarities, own) + F.cross_entropy(similarities.T, own)) / 2


def agreement(
    audio: torch.Tensor,
    text: torch.Tensor,
    logit_scale: torch.Tensor,
    gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """`clap_loss`, of this batch or, with `gather`, of those of all processes, which it makes one batch `[ranks * B, D]` of."""
    audio, text = audio.float(), text.float()
    return clap_loss(gather(audio), gather(text), logit_scale) if gather else clap_loss(audio, text, logit_scale)


class M2D_CLAP_ViT(OfflineTaskViT):
    """M2D plus the agreement of each clip's visible patches with its caption.

    Args:
        loss_off: weight of the CLAP loss.
        off_emb_dim: width E of the captions' embeddings; None: the encoder's. Where it is not the encoder's, a linear layer
            projects them.
        sem_mode: blocks of the semantic projector; 0: the MLP.
        sizes: the arguments of OfflineTaskViT.

    Attributes:
        logit_scale: log of the cosines' factor, trained, to be kept in its bounds by `clip_logit_scale` after each update.
        audio_proj, text_proj: the projectors of both sides.
        gather: makes one batch of those of all processes, in training.
    """

    is_contrastive = True
    gather: Callable[[torch.Tensor], torch.Tensor] = nn.Identity()

    def __init__(self, loss_off: float = 0.01, off_emb_dim: int | None = None, sem_mode: int = 0, **sizes):
        super().__init__(loss_off=loss_off, **sizes)
        width = self.embed_dim
        # Their layers keep PyTorch's own start, as in the published system.
        self.logit_scale = nn.Parameter(torch.tensor(START_LOGIT_SCALE))
        self.audio_proj = audio_projector(width, sem_mode)
        self.text_proj = nn.Identity() if off_emb_dim in (None, width) else nn.Linear(off_emb_dim, width)

    @torch.no_grad()
    def clip_logit_scale(self) -> None:
        """Keep `logit_scale` from 0 to 4.6052, that is, the factor from 1 to 100."""
        self.logit_scale.clamp_(0.0, MAX_LOGIT_SCALE)

    def embed_latent(self, latent: torch.Tensor) -> torch.Tensor:
        """Audio embeddings `[B, D]`, not normalised, from the encoder's outputs `[B, 1 + keep, D]`, class token first."""
        return self.audio_proj(self.drop_cls_token(latent))

    def embed_text(self, text_embs: torch.Tensor) -> torch.Tensor:
        """Captions' embeddings `[B, E]` in the space of the audio embeddings: `[B, D]`, not normalised."""
        return self.text_proj(text_embs.float())

    def task_loss(self, step: Prediction, target: torch.Tensor) -> torch.Tensor:
        """The CLAP loss of a step with the captions' embeddings `[B, E]`."""
        audio, text = self.embed_latent(step.latent), self.embed_text(target)
        return agreement(audio, text, self.logit_scale, self.gather if self.training else None)
