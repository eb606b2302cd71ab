"""The optimizer of a run, its state from a checkpoint (ours or a published one), and the schedules of rates."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..utils.errors import UserError
from .config import OptimSettings

_REMEDY = "the run cannot continue from it; --force_start_epoch 0 starts from its weights alone"


def split_by_decay(names_and_dims: Iterable[tuple[str, int]]) -> tuple[list[str], list[str]]:
    """(not decayed, decayed) names: weight decay is for matrices, not for biases, norms and other 1-D parameters."""
    plain, decayed = [], []
    for name, dims in names_and_dims:
        (plain if dims <= 1 or name.endswith(".bias") else decayed).append(name)
    return plain, decayed


def make_optimizer(model: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.95, decay on matrices) or SGD (momentum 0.9, no decay) over the trained parameters."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = split_by_decay((name, p.ndim) for name, p in trained.items())
    plain, decayed = ([trained[name] for name in names] for names in groups)
    if settings.optim == "sgd":
        return torch.optim.SGD([{"params": plain}, {"params": decayed}], lr=0.0, momentum=0.9)
    return torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings.weight_decay}],
        lr=0.0,
        betas=(0.9, 0.95),
        fused=True,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, checkpoint: dict) -> None:
    """Load a checkpoint's optimizer state, matching parameters by name.

    An optimizer's state numbers its parameters in the order of the checkpoint's model. Published checkpoints have another
    order than ours.

    Raises:
        UserError: the state does not belong to this model's parameters.
    """
    saved = checkpoint["optimizer"]
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    saved_order = [name for name in checkpoint["model"] if name in shapes]
    saved_names = _numbered(split_by_decay((name, len(shapes[name])) for name in saved_order))
    own_names = _numbered(split_by_decay((name, len(shape)) for name, shape in shapes.items()))
    numbers = [n for group in saved["param_groups"] for n in group["params"]]
    if len(numbers) != len(saved_names) or len(saved_names) != len(own_names):
        raise UserError(f"the checkpoint's optimizer has {len(numbers)} parameters, this model {len(own_names)}: {_REMEDY}")
    by_name = {saved_names[i]: saved["state"][n] for i, n in enumerate(numbers) if n in saved["state"]}
    wanted = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for name, state in by_name.items():
        if not wanted <= state.keys():
            raise UserError(f"the checkpoint is of another optimizer (it keeps {', '.join(state)} of {name}): {_REMEDY}")
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim and value.shape != shapes[name]:
                raise UserError(f"the checkpoint's optimizer state {key} of {name} has shape {list(value.shape)}: {_REMEDY}")
    own = optimizer.state_dict()
    # Copies: without them the state would stay a view of the mapped checkpoint file on a CPU.
    own["state"] = {i: _copied(by_name[name]) for i, name in enumerate(own_names) if name in by_name}
    optimizer.load_state_dict(own)


def _copied(state: dict) -> dict:
    return {key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()}


def _numbered(groups: tuple[list[str], list[str]]) -> list[str]:
    return [name for group in groups for name in group]


def learning_rate(position: float, peak: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Linear warm-up from 0, then half a cosine to `min_lr` (Loshchilov and Hutter, 2017, equation 5, one cycle).

    Args:
        position: epoch plus the fraction of it that is done.
        peak: the rate at the end of the warm-up.
        min_lr: the rate at the end.
        warmup_epochs, epochs: lengths of the warm-up and of the whole run, in epochs.
    """
    if position < warmup_epochs:
        return peak * position / warmup_epochs
    remaining = max(epochs - warmup_epochs, 1e-12)
    done = min((position - warmup_epochs) / remaining, 1.0)
    return min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def ema_decay(update: int, updates: int, initial: float, final: float) -> float:
    """EMA decay rate of the target encoder: linear from `initial` at the first update to `final` at the last.

    Args:
        update: the update, from 0.
        updates: updates of the whole run; with a single one its rate is `initial`.
    """
    if updates <= 1:
        return initial
    return initial + (final - initial) * min(update / (updates - 1), 1.0)
