"""Linear layers that multiply float32 matrices by oneDNN on an x86 CPU, where PyTorch itself would take MKL.

On the processor it was measured on, oneDNN is the faster by a tenth (docs/benchmarks.md). PyTorch calls it for other types.
It keeps kernels by shape, half a megabyte each; LRU_CACHE_CAPACITY and ONEDNN_PRIMITIVE_CACHE_CAPACITY together bound them.
"""

import platform

import torch
import torch.nn.functional as F
from torch import nn

_X86 = platform.machine().lower() in ("x86_64", "amd64")
_HAS_ONEDNN = _X86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Product(torch.autograd.Function):
    """C = A Bᵀ + bias of A `[N, K]`, B `[M, K]` and a bias `[M]` or None: `[N, M]`; dA = dC B and dB = dCᵀ A."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        a, b = ctx.saved_tensors
        for_a, for_b, for_bias = ctx.needs_input_grad
        return (
            _Product.apply(grad, b.t(), None) if for_a else None,
            _transposed_times(grad, a) if for_b else None,
            grad.sum(dim=0) if for_bias else None,
        )


def _transposed_times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Aᵀ B, by oneDNN where A is the smaller one: it copies a transposed first factor."""
    return a.t() @ b if a.shape[1] >= b.shape[1] else _Product.apply(a.t(), b.t(), None)


def _suits_onednn(*tensors: torch.Tensor | None) -> bool:
    """Whether these are float32 on an x86 CPU, with nothing about that converts, exports or compiles.

    A compiler would copy the transposed factors, which costs more than is gained.
    """
    return (
        _HAS_ONEDNN
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and all(type(t) in (torch.Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors if t is not None)
        and all(t.dtype == torch.float32 and t.numel() > 0 for t in tensors if t is not None)
    )


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `torch.nn.functional.linear`: `[..., K]` times the transpose of `[M, K]`, and a bias `[M]`: `[..., M]`."""
    if not _suits_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """torch's layer, by `linear`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return linear(x, self.weight, self.bias)
