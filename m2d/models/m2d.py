"""M2D and M2D-D2V: an online encoder with a predictor, and an EMA target encoder (Niizumi et al., 2023, section 2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .masked_vit import MaskedPredictorViT
from .masking import Masking
from .transformer.block import LayerNorm, compilable, make_blocks, run_blocks
from .transformer.precision import product_dtype
from .vit import take_tokens

LOSS_TYPES = ("norm_mse", "mse")


class Prediction(NamedTuple):
    """What a model made of a masked batch, before any loss.

    Attributes:
        pred: predictions for the masked patches `[B, L - keep, D]`, in shuffled order.
        latent: the online encoder's outputs, class token first `[B, 1 + keep, D]`.
        x_target: the target encoder's input.
        ids_restore, mask: the mask, as `forward_encoder` returns it.
    """

    pred: torch.Tensor
    latent: torch.Tensor
    x_target: torch.Tensor
    ids_restore: torch.Tensor
    mask: torch.Tensor


class M2DViT(MaskedPredictorViT):
    """Masked Modeling Duo: predict the target encoder's output for the masked patches from the visible ones.

    The target encoder has its own blocks and norm, randomly initialised and moved by `update_target_network`; it shares
    patch embedding, positions and class token with the online encoder.

    Args:
        loss_type: `norm_mse` (mean of 2 - 2·cosine) or `mse`.
        target_layers: blocks of the target encoder whose mean output is the target; None: the last block.
        sizes: the arguments of MaskedPredictorViT, without output_dim.

    Attributes:
        half_target: under autocast, keep the target encoder's tokens between its blocks in autocast's precision, in place of
            float32.

    Raises:
        ValueError: an unknown loss, or a target layer beyond the encoder's depth.
    """

    has_ema_target = True
    half_target = False

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_layer: Callable = LayerNorm,
        norm_pix_loss: bool = True,
        loss_type: str = "norm_mse",
        target_layers: Sequence[int] | None = None,
        **sizes,
    ):
        shape = dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio, norm_layer=norm_layer)
        super().__init__(output_dim=embed_dim, norm_pix_loss=norm_pix_loss, **shape, **sizes)
        if loss_type not in LOSS_TYPES:
            raise ValueError(f"unknown loss {loss_type!r}: choose from {', '.join(LOSS_TYPES)}")
        if target_layers and not all(-depth <= layer < depth for layer in target_layers):
            raise ValueError(f"target layers {list(target_layers)} reach outside the encoder's {depth} blocks")
        self.loss_type = loss_type
        self.target_layers = {layer % depth for layer in target_layers or ()}
        self.target_blocks = make_blocks(depth, embed_dim, num_heads, mlp_ratio, norm_layer)
        self.target_norm = norm_layer(embed_dim)
        self.init_weights()
        self.target_blocks.requires_grad_(False)
        self.target_norm.requires_grad_(False)

    # ------------------------------------------------------------------ target encoder

    def target_input(self, patches: torch.Tensor, ids_shuffle: torch.Tensor, keep: int) -> torch.Tensor:
        """The masked patches alone `[B, L - keep, D]`, in shuffled order."""
        return take_tokens(patches, ids_shuffle[:, keep:])

    def used_target_blocks(self) -> nn.ModuleList:
        """The target encoder's blocks up to the last one whose output is read."""
        return self.target_blocks[: 1 + max(self.target_layers, default=len(self.target_blocks) - 1)]

    @torch.no_grad()
    def forward_target_encoder(self, x: torch.Tensor, drop_cls: bool = True) -> torch.Tensor:
        """Target for embedded patches `[B, N, D]`: `[B, N, D]`, or `[B, 1 + N, D]` with the class token, without gradient."""
        x = self.with_cls_token(x)
        given = x.dtype
        if self.half_target:
            x = x.to(product_dtype(x))
        outputs = run_blocks(self.used_target_blocks(), x, wanted=self.target_layers)
        x = torch.stack([x.to(given) for x in outputs]).mean(dim=0) if len(outputs) > 1 else outputs[0]
        x = self.target_norm(x)
        return self.drop_cls_token(x) if drop_cls else x

    def _target_and_online(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        target = [*self.target_blocks.parameters(), *self.target_norm.parameters()]
        return target, [*self.blocks.parameters(), *self.norm.parameters()]

    @torch.no_grad()
    def update_target_network(self, decay: float) -> None:
        """`target = decay · target + (1 - decay) · online` (Niizumi et al., 2023, equation 2)."""
        target, online = self._target_and_online()
        torch._foreach_lerp_(target, online, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_online_to_target(self) -> None:
        """Start the target from the online weights, where a checkpoint brings no target."""
        target, online = self._target_and_online()
        torch._foreach_copy_(target, online)  # pyright: ignore[reportPrivateImportUsage]

    # ------------------------------------------------------------------ prediction and loss

    def forward_decoder(self, x: torch.Tensor, ids_restore: torch.Tensor, keep_cls: bool = False) -> torch.Tensor:
        """Predictions for the masked patches `[B, L - keep, D]` in shuffled order, from encoder outputs `[B, 1 + keep, D]`.

        With `keep_cls` the class token's output comes first.
        """
        visible = x.shape[1]
        if not keep_cls:
            return self.project(self.decode_tokens(x, ids_restore, first=visible))
        x = self.decode_tokens(x, ids_restore)
        return self.project(torch.cat([x[:, :1], x[:, visible:]], dim=1))

    @compilable
    def forward_loss(self, target: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
        """Loss between targets and predictions `[..., D]`, a scalar (Niizumi et al., 2023, equation 1)."""
        target, pred = self.standardize(target), pred.float()
        if self.loss_type == "mse":
            return F.mse_loss(pred, target)
        return 2 - 2 * F.cosine_similarity(pred, target, dim=-1, eps=1e-12).mean()

    def predict(self, imgs: torch.Tensor, mask_ratio: Masking) -> Prediction:
        """Encode the visible patches of `[B, C, mels, frames]` and predict the masked ones.

        Raises:
            ValueError: no patch is masked, or none visible.
        """
        latent, x_target, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        keep, length = latent.shape[1] - 1, ids_restore.shape[1]
        if x_target is None or not 0 < keep < length:
            raise ValueError(f"M2D needs masked and visible patches, and the mask leaves {keep} of {length} patches visible")
        return Prediction(self.forward_decoder(latent, ids_restore), latent, x_target, ids_restore, mask)

    def target_of(self, x_target: torch.Tensor, ids_restore: torch.Tensor, keep: int) -> torch.Tensor:
        """The target vectors of the masked patches `[B, L - keep, D]`."""
        return self.forward_target_encoder(x_target)

    def losses(self, step: Prediction) -> dict[str, torch.Tensor]:
        """`loss`, a scalar, of a prediction."""
        target = self.target_of(step.x_target, step.ids_restore, keep=step.latent.shape[1] - 1)
        return {"loss": self.forward_loss(target, step.pred)}

    def forward(self, imgs: torch.Tensor, mask_ratio: Masking = 0.7) -> tuple:
        """Returns `(loss, pred [B, L - keep, D], (ids_restore [B, L], mask [B, L]))` for inputs `[B, C, mels, frames]`."""
        step = self.predict(imgs, mask_ratio)
        return self.losses(step)["loss"], step.pred, (step.ids_restore, step.mask)


class M2D_D2ViT(M2DViT):
    """M2D whose target encoder sees all patches, as data2vec's does; its outputs at the masked patches are the target."""

    def target_input(self, patches: torch.Tensor, ids_shuffle: torch.Tensor, keep: int) -> torch.Tensor:
        """All patches `[B, L, D]`."""
        return patches

    def target_of(self, x_target: torch.Tensor, ids_restore: torch.Tensor, keep: int) -> torch.Tensor:
        """The target vectors of the masked patches `[B, L - keep, D]`."""
        return take_tokens(self.forward_target_encoder(x_target), ids_restore.argsort(dim=1)[:, keep:])

    def forward(self, imgs: torch.Tensor, mask_ratio: Masking = 0.7) -> tuple:
        """Returns `(loss, pred [B, L - keep, D], ids_restore [B, L])`."""
        loss, pred, (ids_restore, _) = super().forward(imgs, mask_ratio)
        return loss, pred, ids_restore
