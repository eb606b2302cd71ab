"""--fsdp: weights, gradients and optimizer state dealt to the processes (FSDP2), for models that one GPU has no room for."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..models.block import Block
from .optim import make_optimizer
from .trainer import Trainer


def shard(trainer: Trainer) -> None:
    """Deal a trainer's model, block by block, and its optimizer's state to the run's processes.

    The trainer keeps a whole twin of the model on the host, which evaluation fills with the weights of the time.
    """
    model, state = trainer.model, trainer.optimizer.state_dict()["state"]
    trainer.twin = copy.deepcopy(model).cpu()
    mesh = init_device_mesh(trainer.launch.device.type, (dist.get_world_size(),))
    for module in [each for each in model.modules() if isinstance(each, Block)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trainer.optimizer = make_optimizer(model, trainer.args)
    trainer.trained = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    dealt = trainer.optimizer.state_dict()
    dealt["state"] = {number: _like(trainer.trained[number], values) for number, values in state.items()}
    trainer.optimizer.load_state_dict(dealt)


def _like(parameter: DTensor, values: dict) -> dict:
    """An optimizer's values for a parameter, dealt as the parameter is."""
    mesh, placements = parameter.device_mesh, parameter.placements
    return {key: distribute_tensor(v, mesh, placements) if torch.is_tensor(v) and v.ndim else v for key, v in values.items()}


def gathered(value):
    """Nested dicts, lists and tuples with every dealt tensor whole, on the host; to be called by all processes alike."""
    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: gathered(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(gathered(v) for v in value)
    return value


def whole_model(trainer: Trainer) -> nn.Module:
    """A model that each process can use by itself: the trainer's own, or its twin with the gathered weights."""
    if trainer.twin is None:
        return trainer.model
    trainer.twin.load_state_dict(gathered(trainer.model.state_dict()))
    return trainer.twin.to(trainer.launch.device)
