"""Products of linear layers in float8: an optional pass over a finished model, for GPUs that multiply float8 matrices.

Rows of both factors are scaled by their largest value (Micikevicius et al., 2022, section 3), which a kernel that computes
a row knows without reading it again: benchmarks/traffic.py counts the bytes. What, by these bytes and the times of products in
docs/benchmarks.md, would cost as much as it saves stays in half precision: products of weight gradients, whose rows are columns
here, of most input gradients, and of attention's last layer.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from ...utils.errors import UserError
from .precision import product_dtype

#: Compute capability of the first GPUs that multiply float8 matrices whose rows are scaled: Ada, then Hopper.
_CAPABILITY = (8, 9)
#: What the sizes of a float8 matrix are multiples of.
_MULTIPLE = 16
_FLOAT8 = torch.float8_e4m3fn


def check_float8(device: torch.device) -> None:
    """Raise UserError where linear layers cannot be computed in float8: no such device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UserError("--fp8 needs a CUDA device that multiplies float8 matrices: omit it here")
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"--fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper); {name} has {capability[0]}.{capability[1]}"
        )


def multiplies_float8(device: torch.device) -> bool:
    """Whether products of float8 matrices are made on a device; elsewhere, those of the rounded values."""
    return device.type == "cuda"


def to_float8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows `[M, K]` in float8 (e4m3), and what to multiply each by, float32 `[M, 1]`."""
    largest = torch.finfo(_FLOAT8).max
    scale = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / largest
    return (x.float() / scale).to(_FLOAT8), scale


def float8_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` with both factors in float8; the sums and the result are as there. Has no gradient.

    Where a device does not multiply float8 matrices, its product of the rounded values.
    """
    rows, scale = to_float8(x.flatten(0, -2))
    columns, weight_scale = to_float8(weight.contiguous())
    if multiplies_float8(x.device):
        scales = dict(scale_a=scale, scale_b=weight_scale.t())
        y = torch._scaled_mm(rows, columns.t(), bias=bias, out_dtype=x.dtype, use_fast_accum=True, **scales)
    else:
        y = F.linear(rows.float() * scale, columns.float() * weight_scale, None if bias is None else bias.float()).to(x.dtype)
    return y.unflatten(0, x.shape[:-1])


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return float8_linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        return gradient @ weight, rows.t() @ x.flatten(0, -2), rows.sum(0) if ctx.needs_input_grad[2] else None


class Float8Linear(nn.Linear):
    """A linear layer whose product is in float8, and its gradients' as ever."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., in]` to `[..., out]`."""
        dtype = product_dtype(input)
        return _Float8Linear.apply(input.to(dtype), self.weight.to(dtype), self.bias.to(dtype))

    def without_bias(self, input: torch.Tensor) -> torch.Tensor:
        """As forward, without the bias."""
        dtype = product_dtype(input)
        return _Float8Linear.apply(input.to(dtype), self.weight.to(dtype), None)


def _suits(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0


def use_float8(layers: Iterable[nn.Module]) -> None:
    """Have linear layers multiply in float8, those that suit; parameters, names, hooks and precision stay as they are."""
    for layer in layers:
        if _suits(layer):
            layer.__class__ = Float8Linear
