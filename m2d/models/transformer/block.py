"""The transformer block of every model: pre-norm attention and MLP (ViT: Dosovitskiy et al., 2021)."""

from collections.abc import Callable, Container, Sequence
from functools import partial, wraps
from typing import overload

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint

from .feed_forward import FeedForward
from .precision import product_dtype

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


class Block(nn.Module):
    """Pre-norm block with exact GELU.

    Args:
        width: width of a token.
        num_heads: attention heads.
        mlp_ratio: width of the MLP's hidden layer, relative to a token's.
        norm_layer: makes a normalisation layer of a width.

    Attributes:
        recompute: discard the activations and recompute them in the backward pass (Chen et al., 2016).
        compiled: what computes the block in training in place of its own code, such as `compiled_block`.
        inference_code: the same outside training.
    """

    recompute = False
    compiled: "BlockCode | None" = None
    inference_code: "BlockCode | None" = None

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0, norm_layer: Callable[[int], nn.Module] = LayerNorm):
        super().__init__()
        self.norm1 = norm_layer(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = norm_layer(width)
        self.mlp = FeedForward(width, int(width * mlp_ratio))

    @overload
    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor: ...

    @overload
    def forward(self, x: torch.Tensor, first: int, mlp_out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]: ...

    def forward(self, x, first=0, mlp_out=None):
        """Tokens `[B, N, D]` to tokens `[B, N - first, D]`: those before `first` are attended to, but not computed.

        With `mlp_out` (see `run_blocks`) the tokens are `x + mlp_out`, and a pair of such is returned.
        """
        if mlp_out is not None:
            return (self.code or self._from_pair)(x, mlp_out, first)
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, first, use_reentrant=False)
        return self._forward(x, first)

    @property
    def code(self) -> "Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]] | None":
        """The code in use in place of the block's own, if any: of `x`, `mlp_out` and `first`, as in `forward`."""
        code = self.compiled if self.training else self.inference_code
        return None if code is None else partial(code, self)

    def _forward(self, x: torch.Tensor, first: int) -> torch.Tensor:
        code = self.code
        return torch.add(*(code(x, no_output(x), first) if code else self._pair(x, first)))

    def _pair(self, x: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, and what the MLP adds to them."""
        x = x[:, first:] + self.attn(self.norm1(x), first)
        return x, self.mlp(self.norm2(x))

    def _from_pair(self, x: torch.Tensor, mlp_out: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._pair(x + mlp_out, first)


def no_output(x: torch.Tensor) -> torch.Tensor:
    """Zeros, of the kind of an MLP's output in a block that takes tokens `x`: such code serves the first block too."""
    return torch.zeros(x.shape, dtype=product_dtype(x), device=x.device, requires_grad=x.requires_grad)


def run_blocks(blocks: Sequence[Block], x: torch.Tensor, first: int = 0, wanted: Container[int] = ()) -> list[torch.Tensor]:
    """Tokens `[B, N, D]` through blocks in turn.

    Blocks with code of another kind hand on their MLP's output beside their tokens. The next one adds it in one pass with its
    norm, and its gradient leaves that block in the precision of products.

    Args:
        blocks: at least one.
        x: tokens.
        first: tokens before this one the last block does not compute.
        wanted: blocks whose outputs are returned too.

    Returns:
        outputs of the wanted blocks and of the last, `[B, N, D]`; of the last `[B, N - first, D]`.
    """
    last = len(blocks) - 1
    in_pairs = blocks[0].code and not (blocks[0].recompute and torch.is_grad_enabled())
    mlp_out = no_output(x) if in_pairs else None
    outputs = []
    for i, block in enumerate(blocks):
        begin = first if i == last else 0
        if mlp_out is None:
            x = block(x, begin)
        else:
            x, mlp_out = block(x, begin, mlp_out)
        if i == last or i in wanted:
            outputs.append(x if mlp_out is None else x + mlp_out)
    return outputs


def compilable(method: Callable) -> Callable:
    """A model's method that `compile_blocks` compiles too: in training it is computed by what `compiled` has under its name."""

    @wraps(method)
    def call(self, *args):
        compute = self.compiled.get(method.__name__, method) if self.training else method
        return compute(self, *args)

    call.is_compilable = True  # pyright: ignore[reportFunctionMemberAccess]
    return call


#: Computes a block from `x`, `mlp_out` and `first`, as `Block.forward` with `mlp_out` does.
BlockCode = Callable[[Block, torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]


def compiled_block(dynamic: bool = False, **options) -> BlockCode:
    """A block's code, compiled on first use: once for all blocks, with `dynamic` for all sizes. `options`: torch.compile's."""
    return torch.compile(Block._from_pair, dynamic=dynamic, **options)


def make_blocks(depth: int, width: int, num_heads: int, mlp_ratio: float, norm_layer: Callable) -> nn.ModuleList:
    """A transformer's blocks."""
    return nn.ModuleList(Block(width, num_heads, mlp_ratio, norm_layer) for _ in range(depth))
