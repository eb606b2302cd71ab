"""M2D-X, M2D-AS and M2D-S: an offline task beside M2D (Niizumi et al., 2024, section IV; M2D-S: Niizumi et al., 2023b)."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .m2d import M2DViT, Prediction
from .masking import Masking
from .vit import take_tokens


class OfflineTaskViT(M2DViT, ABC):
    """M2D, and a task on its outputs with targets from elsewhere; a subclass says which.

    Args:
        loss_m2d, loss_off: weights of the two losses.
        sizes: the arguments of M2DViT.
    """

    loss_names = ("loss", "loss_m2d", "loss_off")

    def __init__(self, loss_m2d: float = 1.0, loss_off: float = 1.0, **sizes):
        super().__init__(**sizes)
        self.loss_m2d, self.loss_off = loss_m2d, loss_off

    @abstractmethod
    def task_loss(self, step: Prediction, target: torch.Tensor) -> torch.Tensor:
        """The offline task's loss of a step, a scalar."""

    def losses(self, step: Prediction, target: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """`loss_m2d`, `loss_off` (0 without a target) and their weighted sum `loss`, each a scalar."""
        loss_m2d = super().losses(step)["loss"]
        loss_off = loss_m2d.new_zeros(()) if target is None else self.task_loss(step, target)
        return {"loss": self.loss_m2d * loss_m2d + self.loss_off * loss_off, "loss_m2d": loss_m2d, "loss_off": loss_off}

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]: the published order of arguments
        self, imgs: torch.Tensor, target: torch.Tensor | None, mask_ratio: Masking = 0.7
    ) -> tuple:
        """One step of both tasks.

        Args:
            imgs: normalised log-mel `[B, C, mels, frames]`.
            target: the offline target, first dimension B; None leaves the offline task out.
            mask_ratio: share of masked patches, or a fixed plan.

        Returns:
            `(loss, pred [B, L - keep, D], (ids_restore, mask, M2D loss, offline loss))`.
        """
        step = self.predict(imgs, mask_ratio)
        losses = self.losses(step, target)
        return losses["loss"], step.pred, (step.ids_restore, step.mask, losses["loss_m2d"], losses["loss_off"])

    def named_losses(self, output: tuple) -> dict[str, torch.Tensor]:
        """The losses in what `forward` returned: `loss`, `loss_m2d` and `loss_off`."""
        loss, _, (_, _, loss_m2d, loss_off) = output
        return dict(zip(self.loss_names, (loss, loss_m2d, loss_off), strict=True))


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
