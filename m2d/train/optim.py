"""The optimizer of a run, and taking up its state from a checkpoint, ours or a published one."""

from argparse import Namespace
from collections.abc import Iterable

import torch
from torch import nn

from ..utils.errors import UserError

_ANEW = "it cannot go on from there; --force_start_epoch 0 starts anew from its weights"


def split_by_decay(names_and_dims: Iterable[tuple[str, int]]) -> tuple[list[str], list[str]]:
    """(not decayed, decayed) names: weight decay is for matrices, not for biases, norms and other 1-D parameters."""
    plain, decayed = [], []
    for name, dims in names_and_dims:
        (plain if dims <= 1 or name.endswith(".bias") else decayed).append(name)
    return plain, decayed


def make_optimizer(model: nn.Module, args: Namespace) -> torch.optim.Optimizer:
    """AdamW (betas 0.9, 0.95, decay on matrices) or SGD (momentum 0.9, no decay) over the trained parameters."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = split_by_decay((name, p.ndim) for name, p in trained.items())
    plain, decayed = ([trained[name] for name in names] for names in groups)
    if args.optim == "sgd":
        return torch.optim.SGD([{"params": plain}, {"params": decayed}], lr=0.0, momentum=0.9)
    return torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": args.weight_decay}],
        lr=0.0,
        betas=(0.9, 0.95),
        fused=True,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, checkpoint: dict) -> None:
    """Take up a checkpoint's optimizer state, parameter by parameter by name.

    An optimizer's state names its parameters by number. The numbers follow the order of the checkpoint's model, which
    is another one in published checkpoints than in ours.

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
        raise UserError(f"the checkpoint's optimizer has {len(numbers)} parameters, this model {len(own_names)}: {_ANEW}")
    by_name = {saved_names[i]: saved["state"][n] for i, n in enumerate(numbers) if n in saved["state"]}
    wanted = {"momentum_buffer"} if isinstance(optimizer, torch.optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for name, state in by_name.items():
        if not wanted <= state.keys():
            raise UserError(f"the checkpoint's optimizer is another one (it keeps {', '.join(state)} of {name}): {_ANEW}")
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim and value.shape != shapes[name]:
                raise UserError(f"the checkpoint's optimizer state {key} of {name} has shape {list(value.shape)}: {_ANEW}")
    own = optimizer.state_dict()
    # Copies: what is taken as it is, on a CPU, would stay a view of the checkpoint's file.
    own["state"] = {i: _copied(by_name[name]) for i, name in enumerate(own_names) if name in by_name}
    optimizer.load_state_dict(own)


def _copied(state: dict) -> dict:
    return {key: value.clone() if torch.is_tensor(value) else value for key, value in state.items()}


def _numbered(groups: tuple[list[str], list[str]]) -> list[str]:
    return [name for group in groups for name in group]
