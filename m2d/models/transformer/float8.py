"""Linear layers in float8: an optional pass over a finished model, for GPUs that multiply float8 matrices."""

from importlib.util import find_spec

import torch
from torch import nn

from ...utils.errors import UserError
from .block import Block

#: Compute capability of the first GPUs with float8 products: Ada, then Hopper.
_CAPABILITY = (8, 9)
#: What the sizes of a float8 product are multiples of.
_MULTIPLE = 16


def check_float8(device: torch.device) -> None:
    """Raise UserError where linear layers cannot be computed in float8: no such device, or torchao is not installed."""
    if find_spec("torchao") is None:
        raise UserError("--fp8 needs torchao, which is not installed: pip install 'm2d-audio[fp8]'")
    if device.type != "cuda" or not torch.cuda.is_available():
        raise UserError("--fp8 needs a CUDA device that multiplies float8 matrices: omit it here")
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"--fp8 needs a GPU of compute capability 8.9 or later (Ada, Hopper); {name} has {capability[0]}.{capability[1]}"
        )


def use_float8(model: nn.Module, emulate: bool = False) -> None:
    """Have the linear layers of a model's blocks multiply in float8: e4m3, and e5m2 for gradients (Micikevicius et al., 2022).

    Each matrix is scaled by its largest value at each product. Biases, norms, attention and all other layers stay as they are;
    so do parameters, their names and their precision. Layers are replaced: hooks on them are to be registered afterwards.

    Args:
        model: the model.
        emulate: round to float8, and multiply in the precision of the input: for devices without float8 products.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # takes seconds to import

    # The gradient of a weight is a product over a batch's tokens, whose number need not be a multiple of 16.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for block in model.modules():
        if isinstance(block, Block):
            convert_to_float8_training(block, config=config, module_filter_fn=lambda layer, _: _suits(layer))


def _suits(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) and layer.in_features % _MULTIPLE == 0 and layer.out_features % _MULTIPLE == 0
