"""The MLP of a block, and the GELU that compiled code computes in it."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .float8 import Float8Linear, float8_linear
from .precision import product_dtype

_HALF = (torch.bfloat16, torch.float16)


def normal_cdf(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Φ(x), the distribution function of the standard normal one, to 8e-8, and exp(-x²/2).

    By equation 7.1.26 of Abramowitz and Stegun (1964), which takes the exponential that GELU's derivative needs too: fewer
    instructions than by the compiler's erf (benchmarks/gelu.py).
    """
    bell = torch.exp2(x * x * (-0.5 * math.log2(math.e)))
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * x.abs())
    tail = 0.5 * bell * t * ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592)
    return torch.where(x < 0, tail, 1 - tail), bell


class Gelu(nn.GELU):
    """Exact GELU, x·Φ(x) (Hendrycks and Gimpel, 2016): compiled, in half precision and without gradient by `normal_cdf`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        if torch.compiler.is_compiling() and input.dtype in _HALF and not torch.is_grad_enabled():
            return (input.float() * normal_cdf(input.float())[0]).to(input.dtype)
        return super().forward(input)


class GeluLinear(torch.autograd.Function):
    """`linear(gelu(hidden + bias))`, which keeps `hidden` alone, and sums the bias's gradient where it computes hidden's.

    For compiled code, which does each of these in one pass over memory. The compiler would otherwise keep the GELU's output
    beside its input, and read the gradient once more for its sum.
    """

    @staticmethod
    def forward(ctx, hidden, bias, weight, out_bias, linear=F.linear):
        """`[B, N, hidden]`, a bias of the hidden layer, weight and bias of the next, and what multiplies: `[B, N, out]`."""
        ctx.save_for_backward(hidden, bias, weight)
        ctx.linear = linear
        wide = hidden.float() + bias
        return linear((wide * normal_cdf(wide)[0]).to(hidden.dtype), weight, out_bias)

    @staticmethod
    def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of forward's arguments."""
        hidden, bias, weight = ctx.saved_tensors
        # The sum in the other order: of the same expression as above the compiler would keep the result.
        wide = bias + hidden.float()
        cdf, bell = normal_cdf(wide)
        slope = cdf + wide * bell * (1 / math.sqrt(2 * math.pi))
        by_hidden = ctx.linear(gradient, weight.t()).float() * slope
        rows = gradient.flatten(0, 1)
        by_weight = rows.t() @ (wide * cdf).to(hidden.dtype).flatten(0, 1)
        return by_hidden.to(hidden.dtype), by_hidden.sum(1).sum(0), by_weight, rows.sum(0), None


class FeedForward(nn.Module):
    """The MLP of a block: linear, exact GELU, linear, by the names of timm's, whose import would take most of a start.

    Args:
        width: width of a token.
        hidden_width: width of the hidden layer.

    Attributes:
        recompute_gelu: compute the GELU again in the backward pass, in place of keeping its output.
    """

    recompute_gelu = False

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.act = Gelu()
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens `[B, N, D]` to tokens `[B, N, D]`."""
        if not (self.recompute_gelu and torch.is_grad_enabled()):
            return self._from_gelu(self.fc1(x))
        if torch.compiler.is_compiling() and self._is_plain() and product_dtype(x) in _HALF:
            return self._fused(x)
        # The backward pass stops computing again once it has the second layer's input.
        return checkpoint(self._from_gelu, self.fc1(x), use_reentrant=False, preserve_rng_state=False)  # pyright: ignore

    def _is_plain(self) -> bool:
        """Whether nobody has hooked or replaced a layer."""
        layers = (self.fc1, self.act, self.fc2)
        kinds = {type(layer) for layer in layers} <= {nn.Linear, Float8Linear, Gelu}
        return kinds and not any(
            layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
            for layer in layers
        )

    def _fused(self, x: torch.Tensor) -> torch.Tensor:
        dtype = product_dtype(x)
        hidden = self.fc1.without_bias(x) if isinstance(self.fc1, Float8Linear) else F.linear(x, self.fc1.weight)
        linear = float8_linear if isinstance(self.fc2, Float8Linear) else F.linear
        return GeluLinear.apply(hidden, self.fc1.bias, self.fc2.weight.to(dtype), self.fc2.bias.to(dtype), linear)

    def _from_gelu(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(hidden))
