"""--fsdp: FSDP2 shards weights, gradients and optimizer state across ranks, for models that do not fit one GPU.

PyTorch's parts of it are imported where they are used: they would take a fifth of every run's start.
"""

import copy
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from ...models.masked_vit import MaskedPredictorViT
from ...models.transformer.block import Block
from ..optim import make_optimizer

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from ..trainer import Trainer


def shard(trainer: "Trainer") -> None:
    """Shard a trainer's model, block by block, and its optimizer's state across the ranks.

    The trainer keeps a full model on the host, which evaluation fills with the current weights.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, state = trainer.model, trainer.optimizer.state_dict()["state"]
    trainer.full_model = copy.deepcopy(model).cpu()
    mesh = init_device_mesh(trainer.launch.device.type, (dist.get_world_size(),))
    for module in [each for each in model.modules() if isinstance(each, Block)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trainer.optimizer = make_optimizer(model, trainer.settings.optim)
    sharded = trainer.optimizer.state_dict()
    sharded["state"] = {number: _like(trainer.trained[number], values) for number, values in state.items()}
    trainer.optimizer.load_state_dict(sharded)


def _like(parameter: "DTensor", values: dict) -> dict:
    """An optimizer's values for a parameter, sharded as the parameter is."""
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements
    return {key: distribute_tensor(v, mesh, placements) if torch.is_tensor(v) and v.ndim else v for key, v in values.items()}


def full_state(value):
    """Nested dicts, lists and tuples with every sharded tensor gathered, on the host; to be called by all ranks."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        return value.full_tensor().cpu()
    if isinstance(value, dict):
        return {key: full_state(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(full_state(v) for v in value)
    return value


def full_model(trainer: "Trainer") -> MaskedPredictorViT:
    """A model that each rank can use by itself: the trainer's own, or its full one with the gathered weights."""
    if not trainer.is_sharded:
        return trainer.model
    trainer.full_model.load_state_dict(full_state(trainer.model.state_dict()))
    return trainer.full_model.to(trainer.launch.device)
