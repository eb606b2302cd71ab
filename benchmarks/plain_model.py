"""A model written the obvious way, as a baseline."""

from torch import nn

from m2d.models.linear import Linear


def without_fused_attention(model: nn.Module) -> None:
    """Attention as two products and a softmax."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def with_torchs_products(model: nn.Module) -> None:
    """Linear layers as PyTorch has them, but for queries, keys and values of a predictor's last block that skips tokens."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.__class__ = nn.Linear
