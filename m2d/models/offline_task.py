"""M2D beside a second, offline task (Niizumi et al., 2024, section IV): the base of M2D-X and of M2D-CLAP."""

from abc import ABC, abstractmethod

import torch

from .m2d import M2DViT, Prediction
from .masking import Masking


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
