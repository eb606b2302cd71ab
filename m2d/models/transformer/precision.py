"""The precision of products under autocast."""

import torch


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """Of the products of linear layers that take `x`: autocast's where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
