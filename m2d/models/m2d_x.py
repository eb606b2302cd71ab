"""M2D-X, M2D-AS and M2D-S: an offline task beside M2D (Niizumi et al., 2024, section IV; M2D-S: Niizumi et al., 2023b)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .m2d import Prediction
from .offline_task import OfflineTaskViT
from .vit import take_tokens


class M2D_X_ViT(OfflineTaskViT):
    """M2D plus the prediction of an offline teacher's features `[B, T, E]`, per time step.

    Args:
        off_emb_dim: width E of an offline target.
        sizes: the arguments of OfflineTaskViT.
    """

    def __init__(self, off_emb_dim: int = 3840, **sizes):
        super().__init__(**sizes)
        self.offline_predictor = nn.Linear(self.grid_size()[0] * self.embed_dim, off_emb_dim)
        self.init_offline_predictor()

    def init_offline_predictor(self) -> None:
        """Xavier-uniform weight, zero bias."""
        nn.init.xavier_uniform_(self.offline_predictor.weight)
        nn.init.zeros_(self.offline_predictor.bias)

    def forward_offline(self, latent: torch.Tensor, pred: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        """Predicted offline targets `[B, T, E]` from visible tokens `[B, 1 + keep, D]` and predictions `[B, L - keep, D]`."""
        tokens = torch.cat([self.drop_cls_token(latent), pred.to(latent.dtype)], dim=1)
        patches = take_tokens(tokens, ids_restore)
        return self.offline_predictor(rearrange(patches, "b (f t) d -> b t (f d)", f=self.grid_size()[0]))

    def offline_loss(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """M2D's loss between predicted and offline targets `[B, T, E]`.

        Raises:
            ValueError: the two have different numbers of time steps or widths.
        """
        if pred.shape != target.shape:
            raise ValueError(
                f"the offline target is {list(target.shape)}, the model predicts {list(pred.shape)} (clips, time steps, width): "
                "teacher and student need patches of the same number of frames, and off_emb_dim is the target's width"
            )
        return self.forward_loss(target, pred)

    def task_loss(self, step: Prediction, target: torch.Tensor) -> torch.Tensor:
        """Loss between the features predicted from a step and the offline target."""
        return self.offline_loss(self.forward_offline(step.latent, step.pred, step.ids_restore), target)


class M2D_AS_ViT(M2D_X_ViT):
    """M2D-X whose offline task is tagging: the mean over time of the linear layer's outputs against multi-hot labels."""

    def offline_loss(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of time-averaged logits `[B, T, classes]` with labels `[B, classes]`.

        Raises:
            ValueError: the labels are of another number of classes.
        """
        logits = pred.float().mean(dim=1)
        if logits.shape != target.shape:
            raise ValueError(
                f"the labels are {list(target.shape)}, the model predicts {list(logits.shape)} (clips, classes): "
                "off_emb_dim is the number of classes"
            )
        return F.binary_cross_entropy_with_logits(logits, target.float())


class M2D_S_ViT(M2D_X_ViT):
    """M2D-X for speech: stored features of a speech model as the offline target."""

    def __init__(self, off_emb_dim: int = 768, **sizes):
        super().__init__(off_emb_dim=off_emb_dim, **sizes)

    def init_offline_predictor(self) -> None:
        """PyTorch's own start, as in the published system."""
