"""The audio ViT encoder: the base of every model."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..utils.errors import UserError
from .masking import Masking, MaskPlan, draw_continuous_plan, draw_random_plan, draw_structured_plan
from .pos_embed import resize_positions, sincos_positions
from .transformer.block import Attention, Block, LayerNorm, compilable, compiled_block, make_blocks, run_blocks
from .transformer.feed_forward import FeedForward
from .transformer.float8 import use_float8
from .transformer.kernels import has_triton

#: Statistics of log-mel spectrograms for checkpoints of 2022, which have none: (mean, std).
DEFAULT_NORM_STATS = (-7.1, 4.2)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(frequency, time) from an int or a pair."""
    if isinstance(size, int):
        return size, size
    first, second = size
    return int(first), int(second)


def take_tokens(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The tokens of `x` `[B or 1, L, D]` at places `ids` `[B, N]`: `[B, N, D]`."""
    x = x.expand(ids.shape[0], -1, -1)
    return x.gather(1, ids[:, :, None].expand(-1, -1, x.shape[2]))


class PatchProjection(nn.Conv2d):
    """A convolution whose stride is its kernel, computed as one matrix product over whole patches; equal to rounding."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: tuple[int, int]):
        super().__init__(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[B, C, mels, frames]` to `[B, D, F, T]`."""
        height, width = self.kernel_size
        rows, columns = input.shape[2] // height, input.shape[3] // width
        whole = input[:, :, : rows * height, : columns * width]
        patches = rearrange(whole, "b c (f h) (t w) -> b f t (c h w)", h=height, w=width)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    """Whole, non-overlapping patches of a spectrogram, each projected to the model's width."""

    def __init__(self, img_size: tuple[int, int], patch_size: tuple[int, int], in_chans: int, embed_dim: int):
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.proj = PatchProjection(in_chans, embed_dim, patch_size)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Whole patches along (frequency, time)."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, C, mels, frames]` to `[B, F*T, D]`, frequency-major."""
        return self.proj(x).flatten(2).transpose(1, 2)


class AudioViT(nn.Module):
    """ViT encoder of log-mel spectrograms (Niizumi et al., 2024, section III; ViT: Dosovitskiy et al., 2021).

    Tokens run frequency-major: index f·T + t, with the class token at index 0.

    Args:
        img_size: input (mels, frames).
        patch_size: patch (mels, frames); frames beyond the last whole patch are ignored.
        in_chans: input channels.
        embed_dim, depth, num_heads, mlp_ratio, norm_layer: the transformer's sizes.
        norm_stats: (mean, std) of the log-mel values the model was trained on, stored with the weights.

    Attributes:
        has_ema_target: whether a target encoder follows the online one (`update_target_network`).
        is_contrastive: whether a loss compares the clips of a batch with each other.
        compiled: compiled code of methods marked `compilable`, by name.

    Raises:
        ValueError: the input is smaller than one patch, or `norm_stats` are not two numbers.
    """

    has_ema_target = False
    is_contrastive = False
    compiled: Mapping[str, Callable] = MappingProxyType({})

    def __init__(
        self,
        img_size: int | Sequence[int] = (80, 608),
        patch_size: int | Sequence[int] = (16, 16),
        in_chans: int = 1,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_layer: Callable = LayerNorm,
        norm_stats: torch.Tensor | Sequence[float] | None = None,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(pair(img_size), pair(patch_size), in_chans, embed_dim)
        if 0 in self.grid_size():
            raise ValueError(f"an input of {pair(img_size)} is smaller than one patch of {pair(patch_size)}")
        self.embed_dim = embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sincos_positions(embed_dim, self.grid_size()), requires_grad=False)
        self.blocks = make_blocks(depth, embed_dim, num_heads, mlp_ratio, norm_layer)
        self.norm = norm_layer(embed_dim)
        stats = torch.as_tensor(DEFAULT_NORM_STATS if norm_stats is None else norm_stats, dtype=torch.float32)
        if stats.numel() != 2:
            raise ValueError(f"norm_stats are two numbers, mean and std, not {stats.numel()}")
        self.norm_stats = nn.Parameter(stats.detach().clone().reshape(2), requires_grad=False)
        self.set_random_mask()

    def init_weights(self) -> None:
        """Xavier-uniform matrices (the patch projection seen as one), zero biases, tokens normal(0, 0.02).

        The bias of the patch projection keeps PyTorch's own start, as in the published system. On the meta device there are no
        values to set, and trying to takes a second: it imports PyTorch's compiler.
        """
        if self.cls_token.is_meta:
            return
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.detach().flatten(1))
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name in ("cls_token", "mask_token"):
                nn.init.normal_(parameter, std=0.02)

    def grid_size(self) -> tuple[int, int]:
        """Patches along (frequency, time)."""
        return self.patch_embed.grid_size

    def patch_size(self) -> tuple[int, int]:
        """Mel bands and frames of a patch."""
        return self.patch_embed.patch_size

    def recompute_activations(self, on: bool = True) -> None:
        """Trade time for memory: recompute the blocks' activations in the backward pass."""
        self._set(Block, "recompute", on)

    def recompute_gelu(self, on: bool = True) -> None:
        """Recompute in the backward pass the blocks' GELU alone, whose output is a quarter of what they keep."""
        self._set(FeedForward, "recompute_gelu", on)

    def compile_blocks(self, on: bool = True, **options) -> None:
        """Compute the blocks, and the methods between them, by compiled code in training, compiled on first use.

        Alike blocks are compiled once (see `compiled_block`).
        """
        self._set(Block, "compiled", compiled_block(**options) if on else None)
        names = [name for name in dir(type(self)) if on and hasattr(getattr(type(self), name), "is_compilable")]
        methods = {name: getattr(type(self), name).__wrapped__ for name in names}
        self.compiled = {name: torch.compile(method, dynamic=False, **options) for name, method in methods.items()}

    def compile_inference(self, on: bool = True, **options) -> None:
        """Compute the blocks outside training by compiled code, compiled on first use, for any number of inputs and frames."""
        self._set(Block, "inference_code", compiled_block(dynamic=True, **options) if on else None)

    def use_short_attention(self, on: bool = True) -> None:
        """Compute attention by our own kernels where they fit (CUDA, half precision, up to 256 tokens); else by torch's.

        Raises:
            UserError: triton is not installed.
        """
        if on and not has_triton():
            raise UserError("short attention needs triton, which is not installed: pip install triton, or turn it off")
        self._set(Attention, "short", on)

    def use_float8(self) -> None:
        """Multiply in float8 in the blocks' linear layers, where it pays: see `transformer.float8`."""
        blocks = [module for module in self.modules() if isinstance(module, Block)]
        use_float8(layer for block in blocks for layer in (block.attn.qkv, block.mlp.fc1, block.mlp.fc2))

    def _set(self, kind: type[nn.Module], name: str, value: object) -> None:
        """Set an attribute of every module of a kind."""
        for module in self.modules():
            if isinstance(module, kind):
                setattr(module, name, value)

    @staticmethod
    def get_cls_token(x: torch.Tensor) -> torch.Tensor:
        """The class token `[B, 1, D]` of tokens `[B, 1 + N, D]`."""
        return x[:, :1]

    @staticmethod
    def drop_cls_token(x: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, 1 + N, D]` without the class token: `[B, N, D]`."""
        return x[:, 1:]

    # ------------------------------------------------------------------ masking

    def set_random_mask(self) -> None:
        """Mask a uniform random subset of the patches (the default)."""
        self.draw_plan = draw_random_plan

    def set_random_structured_mask(self) -> None:
        """Mask whole frequency rows and time columns, as in fine-tuning."""
        self.draw_plan = draw_structured_plan

    def set_random_1d_mask(self, frames: int) -> None:
        """Mask whole time columns in runs of `frames` columns of patches (not spectrogram frames).

        Raises:
            ValueError: runs longer than the input.
        """
        columns = self.grid_size()[1]
        if not 0 < frames <= columns:
            raise ValueError(f"runs of {frames} columns cannot be masked: an input has {columns} columns of patches")
        self.draw_plan = partial(draw_continuous_plan, run=frames)

    def mask_plan(self, x: torch.Tensor, mask_ratio: Masking) -> MaskPlan | None:
        """The masking plan for inputs `[B, C, mels, frames]`; None where nothing is masked.

        Raises:
            ValueError: the ratio is not from 0 to 1, or the fixed plan is for another number of clips or patches.
        """
        batch, (rows, columns) = x.shape[0], (self.grid_size()[0], x.shape[3] // self.patch_size()[1])
        if isinstance(mask_ratio, tuple):
            ids_restore, keep = mask_ratio
            if ids_restore.shape != (batch, rows * columns) or not 0 <= keep <= rows * columns:
                raise ValueError(
                    f"the mask plan is {list(ids_restore.shape)} with {keep} visible patches; "
                    f"needed is a mask plan for {batch} clips of {rows * columns} patches"
                )
            return MaskPlan(ids_restore.to(x.device), keep)
        if not 0 <= mask_ratio <= 1:
            raise ValueError(f"the mask ratio {mask_ratio} is not a share from 0 to 1")
        return None if mask_ratio == 0 else self.draw_plan(batch, (rows, columns), mask_ratio, x.device)

    # ------------------------------------------------------------------ encoding

    def embed(self, x: torch.Tensor, adjust_short: bool = False) -> torch.Tensor:
        """Patches with their positions: `[B, C, mels, frames]` to `[B, F*T, D]`.

        Raises:
            ValueError: the input has not the model's size; with `adjust_short` fewer frames are allowed.
        """
        channels, (mels, frames) = self.patch_embed.proj.in_channels, self.patch_embed.img_size
        width = self.patch_size()[1]
        shortest = width if adjust_short else frames
        if x.ndim != 4 or x.shape[1:3] != (channels, mels) or not shortest <= x.shape[3] <= frames:
            raise ValueError(f"the model takes inputs of [batch, {channels}, {mels}, {frames}], not {list(x.shape)}")
        positions = resize_positions(self.pos_embed, self.grid_size(), x.shape[3] // width)
        return self._add_positions(x, positions[:, 1:])

    @compilable
    def _add_positions(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.patch_embed(x) + positions

    def with_cls_token(self, x: torch.Tensor) -> torch.Tensor:
        """Put the class token, with its position, before patch tokens `[B, N, D]`."""
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        return torch.cat([cls_token.to(x.dtype), x], dim=1)

    def encode_tokens(self, x: torch.Tensor, return_layers: bool = False) -> torch.Tensor:
        """Blocks and norm: `[B, N, D]` to `[B, N, D]`, or one output per block `[depth, B, N, D]`, the last normalised."""
        *layers, x = run_blocks(self.blocks, x, wanted=range(len(self.blocks)) if return_layers else ())
        x = self.norm(x)
        return torch.stack([*layers, x]) if return_layers else x

    def forward_encoder(
        self,
        x: torch.Tensor,
        mask_ratio: Masking,
        return_layers: bool = False,
        adjust_short: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Encode the visible patches.

        Args:
            x: normalised log-mel `[B, C, mels, frames]`.
            mask_ratio: share of masked patches, or a fixed plan `(ids_restore [B, L], keep)`; 0 masks none.
            return_layers: return every block's output.
            adjust_short: accept an input shorter than the model's, and use the first positions.

        Returns:
            tokens with the class token `[B, 1 + keep, D]` (`[depth, B, 1 + keep, D]` with `return_layers`), the
            target encoder's input (None here), the mask `[B, L]` (1: masked), and `ids_restore` `[B, L]`.
        """
        patches = self.embed(x, adjust_short)
        plan = self.mask_plan(x, mask_ratio)
        if plan is None:
            mask = torch.zeros(patches.shape[:2], device=x.device)
            ids_restore = torch.arange(patches.shape[1], device=x.device).expand(patches.shape[:2])
            return self.encode_tokens(self.with_cls_token(patches), return_layers), None, mask, ids_restore
        visible, target = self.split_tokens(patches, plan.ids_shuffle, plan.keep)
        return self.encode_tokens(visible, return_layers), target, plan.mask, plan.ids_restore

    @compilable
    def split_tokens(
        self, patches: torch.Tensor, ids_shuffle: torch.Tensor, keep: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The online encoder's input, class token first `[B, 1 + keep, D]`, and the target encoder's, if there is one."""
        visible = self.with_cls_token(take_tokens(patches, ids_shuffle[:, :keep]))
        return visible, self.target_input(patches.detach(), ids_shuffle, keep)

    def target_input(self, patches: torch.Tensor, ids_shuffle: torch.Tensor, keep: int) -> torch.Tensor | None:
        """The target encoder's input, from the embedded patches: None, for a model without one."""
        return None


class M2DEncoderViT(AudioViT):
    """The encoder alone, for evaluation; it loads the encoder of any model."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.init_weights()

    def forward(self, imgs: torch.Tensor, mask_ratio: Masking = 0.0):
        """As `forward_encoder`."""
        return self.forward_encoder(imgs, mask_ratio)
