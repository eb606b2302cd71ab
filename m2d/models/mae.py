"""MAE and MSM-MAE: reconstruct the masked patches' values (He et al., 2022; Niizumi et al., 2022)."""

from collections.abc import Sequence

import torch
from einops import rearrange

from .masked_vit import MaskedPredictorViT
from .masking import Masking
from .transformer.block import compilable
from .vit import pair, take_tokens


class MaskedAutoencoderViT(MaskedPredictorViT):
    """Masked autoencoder: the predictor's outputs are the values of each patch."""

    def __init__(self, patch_size: int | Sequence[int] = (16, 16), in_chans: int = 1, **sizes):
        height, width = pair(patch_size)
        super().__init__(output_dim=height * width * in_chans, patch_size=patch_size, in_chans=in_chans, **sizes)
        self.init_weights()

    def patchify(self, imgs: torch.Tensor) -> torch.Tensor:
        """`[B, C, mels, frames]` to `[B, L, patch height · patch width · C]`; incomplete patches are left out."""
        height, width = self.patch_size()
        imgs = imgs[:, :, : imgs.shape[2] // height * height, : imgs.shape[3] // width * width]
        return rearrange(imgs, "b c (f h) (t w) -> b (f t) (h w c)", h=height, w=width)

    def unpatchify(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `patchify`."""
        (rows, _), (height, width) = self.grid_size(), self.patch_size()
        return rearrange(x, "b (f t) (h w c) -> b c (f h) (t w)", f=rows, h=height, w=width)

    def forward_decoder(self, x: torch.Tensor, ids_restore: torch.Tensor, keep_cls: bool = False) -> torch.Tensor:
        """Values of all patches `[B, L, values]` in their own order, from encoder outputs `[B, 1 + keep, D]`.

        With `keep_cls` the class token's output comes first: `[B, 1 + L, values]`.
        """
        x = self.project(self.decode_tokens(x, ids_restore))
        patches = take_tokens(self.drop_cls_token(x), ids_restore)
        return torch.cat([self.get_cls_token(x), patches], dim=1) if keep_cls else patches

    @compilable
    def forward_loss(self, imgs: torch.Tensor, pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean squared error over the masked patches, a scalar."""
        errors = (pred.float() - self.standardize(self.patchify(imgs))).square().mean(dim=-1)
        return (errors * mask).sum() / mask.sum()

    def forward(self, imgs: torch.Tensor, mask_ratio: Masking = 0.75) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns `(loss, pred [B, L, values], mask [B, L])` for inputs `[B, C, mels, frames]`.

        Raises:
            ValueError: no patch is masked.
        """
        latent, _, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        keep, length = latent.shape[1] - 1, ids_restore.shape[1]
        if keep == length:
            raise ValueError(f"the loss is over masked patches, and the mask leaves {keep} of {length} patches visible")
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask

    def forward_viz(self, imgs: torch.Tensor, mask_ratio: Masking = 0.75) -> tuple[torch.Tensor, ...]:
        """Returns loss, reconstruction, absolute error (both `[B, C, mels, frames]`) and mask `[B, F, T]`, for pictures.

        Visible patches of the reconstruction are the input's own.
        """
        loss, pred, mask = self.forward(imgs, mask_ratio)
        masked = mask[:, :, None].bool()
        patches = self.patchify(imgs)
        recons = self.unpatchify(torch.where(masked, pred, patches))
        errormap = (recons - self.unpatchify(patches)).abs()
        return loss, recons, errormap, mask.unflatten(1, self.grid_size())
