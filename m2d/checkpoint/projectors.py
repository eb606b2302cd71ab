"""M2D-CLAP's projectors from a checkpoint; its tensors' names and shapes identify their kind."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from ..models.projectors import MeanProjector, MLPProjector, SemanticProjector
from .errors import CheckpointError
from .weights import Weights, copy_tensor


class Projectors(NamedTuple):
    """What comes behind both encoders: audio tokens `[B, N, D]` to `[B, D']`, text vectors `[B, E]` to `[B, D']`."""

    audio: nn.Module
    text: nn.Module


def load_projectors(weights: Weights) -> Projectors | None:
    """The projectors of a checkpoint, which are not trained further unless it is asked for; None where it has none.

    Raises:
        CheckpointError: tensors that are no projector's.
    """
    audio, text = (_part(weights.state, name) for name in ("audio_proj.", "text_proj."))
    if not audio and not text:
        return None
    return Projectors(
        _filled(_audio_projector(audio), audio, "audio_proj", weights), _filled(_text_projector(text), text, "text_proj", weights)
    )


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _audio_projector(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The projector that has such tensors, on the meta device."""
    with torch.device("meta"):
        if "sem_token" in tensors:
            width = tensors["sem_token"].shape[-1]
            depth = max(1, len({name.split(".")[1] for name in tensors if name.startswith("sem_blocks.")}))
            hidden = tensors.get("sem_blocks.0.mlp.fc1.bias", tensors["sem_token"]).shape[-1]
            return SemanticProjector(width, depth, hidden / width)
        return MLPProjector(tensors["0.weight"].shape[-1]) if "0.weight" in tensors else MeanProjector()


def _text_projector(tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    """The projector that has such tensors, on the meta device."""

    def layer(name: str) -> nn.Linear:
        outputs, inputs = tensors[f"{name}weight"].shape
        return nn.Linear(inputs, outputs)

    with torch.device("meta"):
        if "0.weight" in tensors and "2.weight" in tensors:
            return nn.Sequential(layer("0."), nn.ReLU(), layer("2."))
        return layer("") if "weight" in tensors else nn.Identity()


def _filled(module: nn.Module, tensors: Mapping[str, torch.Tensor], name: str, weights: Weights) -> nn.Module:
    own, there = ({key: tensor.shape for key, tensor in state.items()} for state in (module.state_dict(), tensors))
    if own != there:
        wrong = sorted(key for key in own.keys() | there.keys() if own.get(key) != there.get(key))
        raise CheckpointError(f"{weights.path}: {name} is no projector of M2D-CLAP: look at its {', '.join(wrong[:3])}")
    module = module.to_empty(device="cpu").requires_grad_(False).eval()
    for key, tensor in module.state_dict().items():
        copy_tensor(tensor, tensors[key], weights.mapped)
    return module
