"""The encoder of a model under autocast, for inference: the same numbers with less work for each batch."""

import copy

import torch
from torch import nn

from .replay import Replay
from .transformer.kernels import kernels_run
from .vit import AudioViT


class HalfEncoder:
    """Encodes whole inputs as `AudioViT.forward_encoder` does under autocast, with the same rounding.

    On CUDA a block's sums and norms are computed by our kernel, which rounds the same numbers; a few fall to the other side.

    The weights of products are cast once, in place of once in each autocast context, and by compiled code in each batch. They
    are cast again when they change: by an optimizer, `load_state_dict` or `to`, not by writing to `.data`. On CUDA, inputs
    of a shape that comes again are replayed as a CUDA graph, for one thread at a time. How the model computes is taken as it
    is at the first input: `use_short_attention` and `compile_inference` come before.

    Args:
        model: the model, which stays as it is.
        dtype: autocast's type.
    """

    def __init__(self, model: AudioViT, dtype: torch.dtype = torch.bfloat16):
        self._model, self._dtype = model, dtype
        self._weights: list[tuple[int, int]] = []

    def __reduce__(self):
        return HalfEncoder, (self._model, self._dtype)

    def applies(self) -> bool:
        """Whether this is inference under autocast to the type."""
        kind = self._model.cls_token.device.type
        return (
            torch.is_autocast_enabled(kind)
            and torch.get_autocast_dtype(kind) == self._dtype
            and not torch.is_grad_enabled()
            and not self._model.training
            and not torch.compiler.is_compiling()
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel `[B, C, mels, frames]` to tokens `[B, 1 + F·T, D]`, class token first; see `applies`."""
        weights = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in self._model.parameters()]
        if weights != self._weights:
            self._weights, twin = weights, half_copy(self._model, self._dtype)
            if kernels_run(x.device):
                _add_norms_in_one_pass(twin)

            def encode(x: torch.Tensor) -> torch.Tensor:
                return twin.forward_encoder(x, 0.0, adjust_short=True)[0]

            self._encode = Replay(encode) if x.is_cuda else encode
        return self._encode(x)


def _add_norms_in_one_pass(model: AudioViT) -> None:
    """Compute sums and norms by our kernel in blocks that have no other code."""
    from .transformer import add_norm  # imports triton

    if all(block.inference_code is None and add_norm.suits(block) for block in model.blocks):
        for block in model.blocks:
            block.inference_code = add_norm.run_block


def half_copy(model: AudioViT, dtype: torch.dtype) -> AudioViT:
    """A model with the weights of products in half precision; it shares all other tensors."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                tensors[id(parameter)] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
    return copy.deepcopy(model, tensors)
