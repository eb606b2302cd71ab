"""The transformer block of every model: pre-norm attention and MLP (ViT: Dosovitskiy et al., 2021)."""

from collections.abc import Callable
from functools import partial, wraps

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers.mlp import Mlp
from torch import nn
from torch.utils.checkpoint import checkpoint

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


def attend(qkv: torch.Tensor, heads: int, first: int = 0, short: bool = False) -> torch.Tensor:
    """Softmax attention of every head. The attention kernel is chosen here and nowhere else: torch's, or on request ours.

    Args:
        qkv: queries, keys and values side by side, `[B, N, 3·H·D]`.
        heads: the number of heads H.
        first: tokens before this one are attended to, but get no output.
        short: use `short_attention` for the shapes, types and devices that it takes.

    Returns:
        `[B, N - first, H·D]`.
    """
    if short and qkv.is_cuda:
        from . import short_attention  # imports triton, which not every installation has

        if short_attention.suits(qkv, heads):
            return short_attention.attention(qkv, heads, first)
    query, key, value = rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=heads)
    return rearrange(F.scaled_dot_product_attention(query[:, :, first:], key, value), "b h n d -> b n (h d)")


class Attention(nn.Module):
    """Multi-head self-attention with biases (Vaswani et al., 2017, section 3.2.2).

    Args:
        width: width of a token, a multiple of `num_heads`.
        num_heads: attention heads.

    Attributes:
        short: see `attend`.

    Raises:
        ValueError: the heads do not divide the width.
    """

    short = False

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} attention heads do not divide a width of {width}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Tokens `[B, N, D]` to tokens `[B, N - first, D]`; see `attend`."""
        return self.proj(attend(self.qkv(x), self.num_heads, first, self.short))


class FeedForward(Mlp):
    """timm's MLP: linear, exact GELU, linear.

    Attributes:
        recompute_gelu: compute the GELU again in the backward pass, in place of keeping its output.
    """

    recompute_gelu = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, D]` to tokens `[B, N, D]`."""
        if not (self.recompute_gelu and torch.is_grad_enabled()):
            return super().forward(x)
        # The backward pass stops computing again once it has the second layer's input.
        return checkpoint(self._from_gelu, self.fc1(x), use_reentrant=False, preserve_rng_state=False)  # pyright: ignore

    def _from_gelu(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(hidden))


class Block(nn.Module):
    """Pre-norm block with exact GELU.

    Args:
        width: width of a token.
        num_heads: attention heads.
        mlp_ratio: width of the MLP's hidden layer, relative to a token's.
        norm_layer: makes a normalisation layer of a width.

    Attributes:
        recompute: discard the activations and recompute them in the backward pass (Chen et al., 2016).
        compiled: what computes the block in training in place of its own code: see `compiled_block`.
        compiled_inference: the same outside training.
    """

    recompute = False
    compiled: Callable[["Block", torch.Tensor, int], torch.Tensor] | None = None
    compiled_inference: Callable[["Block", torch.Tensor, int], torch.Tensor] | None = None

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0, norm_layer: Callable[[int], nn.Module] = LayerNorm):
        super().__init__()
        self.norm1 = norm_layer(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = norm_layer(width)
        self.mlp = FeedForward(width, int(width * mlp_ratio))

    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Tokens `[B, N, D]` to tokens `[B, N - first, D]`: those before `first` are attended to, but not computed."""
        compute = (self.compiled if self.training else self.compiled_inference) or Block._forward
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, self, x, first, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return compute(self, x, first)

    def _forward(self, x: torch.Tensor, first: int) -> torch.Tensor:
        x = x[:, first:] + self.attn(self.norm1(x), first)
        return x + self.mlp(self.norm2(x))


def compilable(method: Callable) -> Callable:
    """A model's method that `compile_blocks` compiles too: in training it is computed by what `compiled` has under its name."""

    @wraps(method)
    def call(self, *args):
        compute = self.compiled.get(method.__name__, method) if self.training else method
        return compute(self, *args)

    call.is_compilable = True  # pyright: ignore[reportFunctionMemberAccess]
    return call


def compiled_block(dynamic: bool = False, **options) -> Callable[[Block, torch.Tensor, int], torch.Tensor]:
    """A block's code, compiled on first use: once for all blocks, with `dynamic` for all sizes. `options`: torch.compile's."""
    return torch.compile(Block._forward, dynamic=dynamic, **options)


def make_blocks(depth: int, width: int, num_heads: int, mlp_ratio: float, norm_layer: Callable) -> nn.ModuleList:
    """A transformer's blocks."""
    return nn.ModuleList(Block(width, num_heads, mlp_ratio, norm_layer) for _ in range(depth))
