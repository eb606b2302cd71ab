"""Checks of the kernel for sums and norms against float64.

As a program, with TRITON_INTERPRET=1, it runs them on the CPU; `-m gpu` tests call them on a GPU.
"""

import torch
import torch.nn.functional as F
from torch import nn

from m2d.models import half_encoder
from m2d.models.half_encoder import HalfEncoder
from m2d.models.transformer.add_norm import add_norm, run_block, suits
from m2d.models.transformer.block import Block
from m2d.models.vit import M2DEncoderViT

#: One below, at and above a power of two; those of the models.
WIDTHS = (1, 31, 64, 65, 192, 384, 512, 768, 1024)
TOKENS = ((1, 1), (2, 5))
GUARD = 1 << 12


def inputs(width: int, tokens: tuple[int, int], dtype: torch.dtype, device: str, mean: float = 0.0):
    """Tokens, what is added to them, and a norm."""
    generator = torch.Generator().manual_seed(width)
    x, more = (torch.randn(*tokens, width, generator=generator) for _ in range(2))
    norm = nn.LayerNorm(width, eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(width, generator=generator) + 0.5)
        norm.bias.copy_(torch.randn(width, generator=generator))
    return (x + mean).to(device), more.to(device, dtype), norm.to(device)


@torch.no_grad()
def check_values(width: int, tokens: tuple[int, int], dtype: torch.dtype, device: str, mean: float = 0.0) -> None:
    """The sum bit by bit, and its norm to rounding; also where the mean is far from zero."""
    x, more, norm = inputs(width, tokens, dtype, device, mean)
    total, normed = add_norm(x, more, norm)
    assert total.dtype == torch.float32 and torch.equal(total, x + more)
    true = F.layer_norm(total.double(), (width,), norm.weight.double(), norm.bias.double(), norm.eps)
    # Half a unit in the last place, where the interpreter truncates one; and what float32 loses to the mean.
    units = 1 if dtype == torch.bfloat16 and device == "cpu" else 0.5
    allowed = units * torch.finfo(dtype).eps * true.abs() + 1e-5 + 1e-6 * abs(mean)
    assert normed.dtype == dtype and bool(((normed.double() - true).abs() <= allowed).all()), (width, tokens, dtype, mean)


@torch.no_grad()
def check_nothing_beyond_the_ends(width: int, device: str) -> None:
    """Inputs that are views in larger memory full of NaN, and not contiguous."""
    x, more, norm = inputs(width, (2, 7), torch.bfloat16, device)
    views = []
    for tensor in (x, more):
        memory = torch.full((tensor.numel() + 2 * GUARD,), float("nan"), dtype=tensor.dtype, device=device)
        view = memory[GUARD : GUARD + tensor.numel()].view(tensor.shape)
        views.append(view.copy_(tensor))
    expected = add_norm(x[:, 2:].clone(), more[:, 2:].clone(), norm)
    found = add_norm(views[0][:, 2:], views[1][:, 2:], norm)
    assert all(torch.equal(one, other) and one.isfinite().all() for one, other in zip(found, expected, strict=True))


@torch.no_grad()
def check_block(device: str) -> None:
    """A block's tokens are those of its own code."""
    torch.manual_seed(0)
    block = Block(64, 2).to(device).eval()
    assert suits(block) and not suits(Block(64, 2).half())
    x, mlp_out = torch.randn(2, 9, 64, device=device), torch.randn(2, 9, 64, device=device).bfloat16()
    for first in (0, 4):
        with torch.autocast(device, torch.bfloat16):
            expected, found = block(x, first, mlp_out), run_block(block, x, mlp_out, first)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@torch.no_grad()
def check_encoder(device: str) -> None:
    """`HalfEncoder` takes it, and its tokens are near those of autocast."""
    torch.manual_seed(0)
    sizes = dict(img_size=(80, 64), patch_size=(16, 16), embed_dim=64, depth=3, num_heads=2)
    model, x = M2DEncoderViT(**sizes).to(device).eval(), torch.randn(3, 1, 80, 64, device=device)
    encoder = HalfEncoder(model)
    with torch.autocast(device, torch.bfloat16):
        found, expected = encoder(x), model.forward_encoder(x, 0.0, adjust_short=True)[0]
    assert not any(block.inference_code for block in model.blocks)
    assert found.dtype == expected.dtype and torch.cosine_similarity(found, expected, dim=-1).min() > 0.9999


if __name__ == "__main__":
    half_encoder.kernels_run = lambda device: True
    for width in WIDTHS:
        for tokens in TOKENS:
            check_values(width, tokens, torch.bfloat16, "cpu")
    for width in (65, 768):
        check_values(width, (2, 5), torch.float16, "cpu")
        check_values(width, (2, 5), torch.bfloat16, "cpu", mean=300.0)
        check_nothing_beyond_the_ends(width, "cpu")
    check_block("cpu")
    check_encoder("cpu")
    print("all hold")
