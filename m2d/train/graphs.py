"""The forward and backward pass of a step as two CUDA graphs: two launches in place of one a kernel.

A small model's kernels take less time than the host takes to launch them one by one.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..models.masking import MaskPlan
from ..models.replay import is_close
from ..utils.errors import first_line

logger = logging.getLogger("m2d")

#: The losses of a model's inputs, by name.
LossesOf = Callable[[tuple], dict[str, torch.Tensor]]


class _Losses(nn.Module):
    """A model's losses, as a function of tensors alone."""

    def __init__(self, model: Any, keep: int):
        super().__init__()
        self.model, self.keep = model, keep
        self.names: list[str] = []

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *inputs, ids_restore = tensors
        losses = self.model.named_losses(self.model(*inputs, MaskPlan(ids_restore, self.keep)))
        self.names = list(losses)
        return tuple(losses.values())


def graph_losses(model: Any, inputs: tuple) -> LossesOf:
    """Capture a model's losses and their gradients for inputs like these.

    The gradients that a backward pass leaves in `.grad` are those of its memory: the next one overwrites them. So each is to
    be used and cleared before the next, as without accumulated steps.

    Weights that autocast casts once a step would be those of the capture: it is called without autocast's cache.

    Args:
        model: a training model on CUDA, compiled or not, in training.
        inputs: a batch's, the last one a mask plan; all batches have their shapes and number of visible patches.

    Returns:
        what `model.named_losses` gives for such inputs.
    """
    *tensors, (ids_restore, keep) = inputs
    losses = _Losses(model, keep)
    given = (*map(torch.zeros_like, tensors), ids_restore.clone())
    replayed = torch.cuda.make_graphed_callables(losses, given, allow_unused_input=True)

    def named(inputs: tuple) -> dict[str, torch.Tensor]:
        *tensors, (ids_restore, _) = inputs
        # The next step overwrites what this one returns.
        return {name: loss.clone() for name, loss in zip(losses.names, replayed(*tensors, ids_restore), strict=True)}

    return named


def try_graphs(model: Any, inputs: tuple) -> LossesOf | None:
    """`graph_losses`; where that fails, or the gradients of these inputs are not the model's, log why and return None."""
    try:
        losses_of = graph_losses(model, inputs)
        found = _gradients(model, losses_of(inputs))
        if not is_close(found, _gradients(model, model.named_losses(model(*inputs)))):
            raise RuntimeError("gradients by graphs differ from those without them")
        return losses_of
    except RuntimeError as error:
        logger.warning("no CUDA graphs, launching kernels one by one: %s", first_line(error))
        return None
    finally:
        model.zero_grad(set_to_none=True)


def _gradients(model: nn.Module, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """All gradients of a loss, one after the other."""
    model.zero_grad(set_to_none=True)
    losses["loss"].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
