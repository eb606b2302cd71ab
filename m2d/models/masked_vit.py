"""An encoder followed by a transformer predictor (decoder): the base of MAE and M2D."""

from collections.abc import Callable

import torch
from torch import nn

from .pos_embed import resize_positions, sincos_positions
from .transformer.block import LayerNorm, compilable, make_blocks, run_blocks
from .vit import AudioViT, take_tokens


class MaskedPredictorViT(AudioViT):
    """Encodes the visible patches and predicts from them, with mask tokens for the masked ones (He et al., 2022, section 3).

    Each token has its own position, so the predictor is equivariant to their order. It keeps them shuffled, visible first
    and masked last: the predictions for the masked patches are the last rows, without any reordering.

    Args:
        output_dim: width of a prediction.
        decoder_embed_dim, decoder_depth, decoder_num_heads: sizes of the predictor.
        norm_pix_loss: standardise each target vector.
        encoder: the arguments of AudioViT.

    Attributes:
        loss_names: the names of the losses, the total first.
    """

    loss_names: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        output_dim: int,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        norm_pix_loss: bool = False,
        mlp_ratio: float = 4.0,
        norm_layer: Callable = LayerNorm,
        **encoder,
    ):
        super().__init__(mlp_ratio=mlp_ratio, norm_layer=norm_layer, **encoder)
        width = decoder_embed_dim
        self.norm_pix_loss = norm_pix_loss
        self.decoder_embed = nn.Linear(self.embed_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(sincos_positions(width, self.grid_size()), requires_grad=False)
        self.decoder_blocks = make_blocks(decoder_depth, width, decoder_num_heads, mlp_ratio, norm_layer)
        self.decoder_norm = norm_layer(width)
        self.decoder_pred = nn.Linear(width, output_dim)

    def decode_tokens(self, x: torch.Tensor, ids_restore: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Outputs of the predictor's blocks, from encoder outputs `[B, 1 + keep, D]`.

        Returns:
            `[B, 1 + L - first, predictor width]`: the class token, then the patches in shuffled order, without the `first`
            tokens of these, which the last block does not compute.
        """
        return run_blocks(self.decoder_blocks, self.predictor_tokens(x, ids_restore), first)[-1]

    @compilable
    def predictor_tokens(self, x: torch.Tensor, ids_restore: torch.Tensor) -> torch.Tensor:
        """The predictor's input `[B, 1 + L, predictor width]`: encoder outputs and mask tokens, with their positions."""
        x = self.decoder_embed(x)
        batch, length = ids_restore.shape
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(batch, length + 1 - x.shape[1], -1)], dim=1)
        positions = resize_positions(self.decoder_pos_embed, self.grid_size(), length // self.grid_size()[0])
        patch_positions = take_tokens(positions[:, 1:], ids_restore.argsort(dim=1))
        return x + torch.cat([positions[:, :1].expand(batch, -1, -1), patch_positions], dim=1)

    @compilable
    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Norm and last projection."""
        return self.decoder_pred(self.decoder_norm(x))

    def standardize(self, target: torch.Tensor) -> torch.Tensor:
        """Each target vector to mean 0 and variance 1, unless turned off (He et al., 2022, section 3).

        The variance is the unbiased one, with 1e-6 added to it.
        """
        target = target.float()
        if not self.norm_pix_loss:
            return target
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) * (variance + 1e-6).rsqrt()

    def named_losses(self, output: tuple) -> dict[str, torch.Tensor]:
        """The losses in what `forward` returned, by name: `loss`."""
        return {"loss": output[0]}
