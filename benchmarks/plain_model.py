"""A model written the obvious way, as a baseline."""

import torch
from einops import rearrange
from torch import nn

from m2d.models.transformer.block import Attention
from m2d.models.transformer.onednn import OneDnnLinear


class PlainAttention(nn.Module):
    """Attention as two products and a softmax, with the layers of another one."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.num_heads, self.qkv, self.proj = attention.num_heads, attention.qkv, attention.proj

    def forward(self, x: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Tokens `[B, N, D]` to tokens `[B, N - first, D]`."""
        query, key, value = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        weights = (query[:, :, first:] * query.shape[-1] ** -0.5 @ key.mT).softmax(dim=-1)
        return self.proj(rearrange(weights @ value, "b h n d -> b n (h d)"))


def without_fused_attention(model: nn.Module) -> None:
    """Attention as two products and a softmax."""
    _replace(model, Attention, PlainAttention)


def with_torchs_products(model: nn.Module) -> None:
    """Linear layers as PyTorch has them."""
    _replace(model, OneDnnLinear, _torchs)


def _torchs(layer: nn.Linear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def _replace(model: nn.Module, kind: type[nn.Module], make) -> None:
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is kind:
                setattr(parent, name, make(module))
