"""M2D and M2D-D2V: an online encoder with a predictor, and an EMA target encoder (Niizumi et al., 2023, section 2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .masked_vit import MaskedPredictorViT
from .vit import LayerNorm, freeze, make_blocks, take_tokens

LOSS_TYPES = ("norm_mse", "mse")


class M2DViT(MaskedPredictorViT):
    """Masked Modeling Duo: predict the target encoder's view of the hidden patches from the visible ones.

    The target encoder has blocks and a norm of its own, started at random and moved by `update_target_network`;
    patch embedding, positions and class token it shares with the online encoder.

    Args:
        loss_type: `norm_mse` (mean of 2 - 2·cosine) or `mse`.
        target_layers: blocks of the target encoder whose mean output is the target; None: the last one's.
        sizes: those of MaskedPredictorViT, without output_dim.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_layer=LayerNorm,
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
        freeze(self.target_blocks)
        freeze(self.target_norm)

    # ------------------------------------------------------------------ target encoder

    def target_input(self, patches: torch.Tensor, ids_shuffle: torch.Tensor, keep: int) -> torch.Tensor:
        """The hidden patches alone `[B, L - keep, D]`, in shuffled order."""
        return take_tokens(patches, ids_shuffle[:, keep:])

    def used_target_blocks(self) -> list[torch.nn.Module]:
        """The target encoder's blocks up to the last one whose output is read."""
        return list(self.target_blocks)[: 1 + max(self.target_layers, default=len(self.target_blocks) - 1)]

    @torch.no_grad()
    def forward_target_encoder(self, x: torch.Tensor, drop_cls: bool = True) -> torch.Tensor:
        """Target for embedded patches `[B, N, D]`: `[B, N, D]`, or `[B, 1 + N, D]` with the class token, without gradient."""
        x = self.with_cls_token(x)
        chosen = []
        for i, block in enumerate(self.used_target_blocks()):
            x = block(x)
            if i in self.target_layers:
                chosen.append(x)
        x = self.target_norm(torch.stack(chosen).mean(dim=0) if chosen else x)
        return self.drop_cls_token(x) if drop_cls else x

    def _twins(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        target = [*self.target_blocks.parameters(), *self.target_norm.parameters()]
        return target, [*self.blocks.parameters(), *self.norm.parameters()]

    @torch.no_grad()
    def update_target_network(self, decay: float) -> None:
        """`target = decay · target + (1 - decay) · online` (Niizumi et al., 2023, equation 2)."""
        target, online = self._twins()
        torch._foreach_lerp_(target, online, 1.0 - decay)

    @torch.no_grad()
    def copy_online_to_target(self) -> None:
        """Start the target from the online weights, where a checkpoint brings no target."""
        target, online = self._twins()
        torch._foreach_copy_(target, online)

    # ------------------------------------------------------------------ prediction and loss

    def forward_decoder(self, x: torch.Tensor, ids_restore: torch.Tensor, keep_cls: bool = False) -> torch.Tensor:
        """Predictions for the hidden patches `[B, L - keep, D]` in shuffled order, from encoder outputs `[B, 1 + keep, D]`.

        With `keep_cls` the class token's output comes first.
        """
        visible = x.shape[1]
        if not keep_cls:
            return self.project(self.decode_tokens(x, ids_restore, first=visible))
        x = self.decode_tokens(x, ids_restore)
        return self.project(torch.cat([x[:, :1], x[:, visible:]], dim=1))

    def forward_loss(self, target: torch.Tensor, pred: torch.Tensor) -> torch.Tensor:
        """Loss between targets and predictions `[..., D]`, a scalar (Niizumi et al., 2023, equation 1)."""
        target, pred = self.standardize(target), pred.float()
        if self.loss_type == "mse":
            return F.mse_loss(pred, target)
        return 2 - 2 * F.cosine_similarity(pred, target, dim=-1, eps=1e-12).mean()

    def forward_online(self, imgs: torch.Tensor, mask_ratio: float | tuple[torch.Tensor, int]):
        """One masked prediction: `(loss, pred, visible tokens [B, 1 + keep, D], ids_restore, mask)`.

        Raises:
            ValueError: no patch is hidden, or none visible.
        """
        latent, x_target, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        keep, length = latent.shape[1] - 1, ids_restore.shape[1]
        if not 0 < keep < length:
            raise ValueError(f"M2D needs hidden and visible patches, and the mask leaves {keep} of {length} patches visible")
        pred = self.forward_decoder(latent, ids_restore)
        loss = self.forward_loss(self.target_of(x_target, ids_restore, keep), pred)
        return loss, pred, latent, ids_restore, mask

    def target_of(self, x_target: torch.Tensor, ids_restore: torch.Tensor, keep: int) -> torch.Tensor:
        """The target vectors of the hidden patches `[B, L - keep, D]`."""
        return self.forward_target_encoder(x_target)

    def forward(self, imgs: torch.Tensor, mask_ratio: float | tuple[torch.Tensor, int] = 0.7):
        """Returns `(loss, pred [B, hidden, D], (ids_restore [B, L], mask [B, L]))` for inputs `[B, C, mels, frames]`."""
        loss, pred, _, ids_restore, mask = self.forward_online(imgs, mask_ratio)
        return loss, pred, (ids_restore, mask)


class M2D_D2ViT(M2DViT):
    """M2D whose target encoder sees all patches, as data2vec's does; its outputs at the hidden places are the target."""

    def target_input(self, patches: torch.Tensor, ids_shuffle: torch.Tensor, keep: int) -> torch.Tensor:
        """All patches `[B, L, D]`."""
        return patches

    def target_of(self, x_target: torch.Tensor, ids_restore: torch.Tensor, keep: int) -> torch.Tensor:
        """The target vectors of the hidden patches `[B, L - keep, D]`."""
        return take_tokens(self.forward_target_encoder(x_target), ids_restore.argsort(dim=1)[:, keep:])

    def forward(self, imgs: torch.Tensor, mask_ratio: float | tuple[torch.Tensor, int] = 0.7):
        """Returns `(loss, pred [B, hidden, D], ids_restore [B, L])`."""
        loss, pred, (ids_restore, _) = super().forward(imgs, mask_ratio)
        return loss, pred, ids_restore
