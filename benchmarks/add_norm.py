"""Sums and norms of a block's inference: our Triton kernel against torch's three passes, and what it compiles to.

python -m benchmarks.add_norm                 # microseconds, on a GPU
python -m benchmarks.add_norm --compile_only  # registers, spills and shared memory; needs no GPU
"""

import argparse

import torch
import torch.nn.functional as F
from torch import nn
from triton.testing import do_bench

from benchmarks.attention import resources
from m2d.models.transformer.add_norm import _add_norm, add_norm, settings

#: Widths of m2d_vit_tiny, _small and _base.
WIDTHS = (192, 384, 768)
POINTERS = dict(x="*fp32", more="*bf16", weight="*fp32", bias="*fp32", total="*fp32", normed="*bf16")


def measure(width: int, tokens: int) -> str:
    """Microseconds, and bytes a second."""
    x = torch.randn(1, tokens, width, device="cuda")
    more, norm = torch.randn_like(x).bfloat16(), nn.LayerNorm(width, device="cuda")

    def apart() -> torch.Tensor:
        return F.layer_norm(x + more, (width,), norm.weight, norm.bias, norm.eps).bfloat16()

    with torch.no_grad():
        torchs, ours = (1e3 * do_bench(work) for work in (apart, lambda: add_norm(x, more, norm)))
    return f"torch {torchs:.0f} µs, ours {ours:.0f} µs, {12e-6 * x.numel() / ours:.2f} TB/s"


def main() -> None:
    """Print a line for each width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=171 * 191, help="those of a batch of m2d embed")
    parser.add_argument("--compile_only", action="store_true")
    args = parser.parse_args()
    for width in WIDTHS:
        if not args.compile_only:
            print(f"{args.tokens} tokens of {width}: {measure(width, args.tokens)}", flush=True)
            continue
        for capability in (90, 80):
            size = resources(_add_norm, POINTERS, {"eps": "fp32"}, settings(width), capability)
            print(f"width {width}, sm_{capability}: {size}", flush=True)


if __name__ == "__main__":
    main()
