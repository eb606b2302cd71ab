"""Linear layers by oneDNN: an optional pass over a finished model, for processors where it is faster than MKL.

PyTorch multiplies float32 matrices by MKL on an x86 CPU. On AMD's processors oneDNN makes the training step 1.1 times as
fast, on Intel's it is slower (docs/benchmarks.md). oneDNN keeps kernels by shape, half a megabyte each;
LRU_CACHE_CAPACITY and ONEDNN_PRIMITIVE_CACHE_CAPACITY together bound them.
"""

import platform
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

_X86 = platform.machine().lower() in ("x86_64", "amd64")
HAS_ONEDNN = _X86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

_CPUINFO = Path("/proc/cpuinfo")


@cache
def onednn_is_faster() -> bool:
    """Whether this machine's processor is of a kind that oneDNN was measured to be faster on: AMD's."""
    return HAS_ONEDNN and _CPUINFO.exists() and "AuthenticAMD" in _CPUINFO.read_text(errors="replace")


def use_onednn_if_faster(model: nn.Module) -> None:
    """`use_onednn`, on a processor that it pays on."""
    if onednn_is_faster():
        use_onednn(model)


def use_onednn(model: nn.Module) -> None:
    """Have a model's linear layers multiply by oneDNN. Parameters, their names and the computed function stay.

    Layers are replaced: hooks on them are to be registered afterwards.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, OneDnnLinear.sharing(layer))


class OneDnnLinear(nn.Linear):
    """torch's linear layer, by `linear`."""

    @classmethod
    def sharing(cls, layer: nn.Linear) -> "OneDnnLinear":
        """A layer with the parameters of another one."""
        twin = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        twin.weight, twin.bias = layer.weight, layer.bias
        return twin.train(layer.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in_features]` to `[..., out_features]`."""
        return linear(input, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `torch.nn.functional.linear`: `[..., K]` times the transpose of `[M, K]`, and a bias `[M]`: `[..., M]`."""
    if not _suits_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    bias = None if bias is None else bias.contiguous()  # oneDNN reads past the strides of one
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)


def _suits_onednn(*tensors: torch.Tensor | None) -> bool:
    """Whether these are float32 on an x86 CPU, and nothing converts, exports or compiles.

    A compiler would copy the transposed factors, which costs more than is gained.
    """
    return (
        HAS_ONEDNN
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch.compiler.is_compiling()
        and all(type(t) in (torch.Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors if t is not None)
        and all(t.dtype == torch.float32 and t.numel() > 0 for t in tensors if t is not None)
    )


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
    def backward(ctx, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
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
