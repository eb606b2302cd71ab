"""A block's inference with its residual sums and norms in one pass over memory each, by a Triton kernel.

Under autocast torch adds, normalises and casts in three passes, which move 24 bytes for each value of a token; this moves 12.

Importing this module needs triton.
"""

import torch
import triton
import triton.language as tl
from torch import nn

from .block import Block

WARPS = 4


@triton.jit
def _add_norm(x, more, weight, bias, total, normed, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """A token of `x + more`, and its LayerNorm."""
    row = tl.program_id(0).to(tl.int64) * WIDTH
    at = tl.arange(0, BLOCK)
    is_value = at < WIDTH
    values = tl.load(x + row + at, is_value, other=0.0) + tl.load(more + row + at, is_value, other=0.0).to(tl.float32)
    tl.store(total + row + at, values, is_value)
    centred = tl.where(is_value, values - tl.sum(values, 0) / WIDTH, 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, 0) / WIDTH + eps)
    scaled = centred * scale * tl.load(weight + at, is_value) + tl.load(bias + at, is_value)
    tl.store(normed + row + at, scaled.to(normed.dtype.element_ty), is_value)


def settings(width: int) -> dict:
    """What the kernel is compiled for."""
    return dict(WIDTH=width, BLOCK=triton.next_power_of_2(width), num_warps=WARPS)


def add_norm(x: torch.Tensor, more: torch.Tensor, norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + more`, float32, and its LayerNorm in `more`'s type (Ba et al., 2016, equation 4), rounded once.

    Args:
        x: tokens `[B, N, D]`, float32.
        more: what a layer adds to them, in half precision.
        norm: of the width D, float32.
    """
    x, more = x.contiguous(), more.contiguous()
    total, normed = torch.empty_like(x), torch.empty_like(more)
    tokens, width = x.numel() // x.shape[-1], x.shape[-1]
    with torch.cuda.device_of(x):  # triton launches on the current device
        _add_norm[tokens,](x, more, norm.weight, norm.bias, total, normed, norm.eps, **settings(width))
    return total, normed


def try_kernel(device: torch.device) -> None:
    """Run the kernel on a device once, on a token of zeros; raises whatever keeps it from running."""
    token = torch.zeros(1, 1, 16, device=device)
    add_norm(token, token.bfloat16(), nn.LayerNorm(16, device=device))
    torch.cuda.synchronize(device)


def suits(block: Block) -> bool:
    """Whether `run_block` computes what a block does: its norms are plain ones in float32."""
    norms = (block.norm1, block.norm2)
    return all(type(norm) is nn.LayerNorm and norm.bias is not None and norm.weight.dtype == torch.float32 for norm in norms)


def run_block(block: Block, x: torch.Tensor, mlp_out: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `Block.forward` with `mlp_out`, in half precision and without gradients."""
    x, normed = add_norm(x, mlp_out, block.norm1)
    x, normed = add_norm(x[:, first:], block.attn(normed, first), block.norm2)
    return x, block.mlp(normed)
