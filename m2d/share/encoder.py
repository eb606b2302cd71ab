"""The encoder alone, extracted from a checkpoint into one file with metadata."""

import json
import logging
from pathlib import Path

import torch

from ..checkpoint.weights import Weights, save_atomically
from ..utils.atomic_file import write_bytes
from ..utils.outputs import check_outputs
from .licence import origin_of

logger = logging.getLogger("m2d")

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "norm_stats")


def encoder_state(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of the online encoder and norm_stats, under the published names."""
    return {name: tensor.clone() for name, tensor in weights.state.items() if name.startswith(ENCODER)}


def describe(weights: Weights) -> dict[str, str]:
    """A file's metadata, as far as they are known: model, input_size, patch_size, sr, norm_stats, origin."""
    told = {}
    if weights.spec:
        input_size, patch_size, rate, model = weights.spec
        told = dict(model=model, input_size="x".join(map(str, input_size)), patch_size="x".join(map(str, patch_size)), sr=rate)
    if weights.norm_stats:
        told["norm_stats"] = json.dumps(weights.norm_stats)
    if origin := origin_of(weights):
        told["origin"] = origin
    return told


def export_encoder(weights: Weights, dest: Path, overwrite: bool = False, half: bool = False) -> None:
    """Write the encoder to `dest`, a .pth or .safetensors file; an existing one is replaced on `overwrite`.

    With `half` its matrices are float16; statistics, positions and vectors stay as they are.
    """
    if dest.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"DEST {dest}: expected a file name that ends in .pth or .safetensors")
    check_outputs([dest], [weights.path], overwrite)
    if weights.head:
        classes = weights.head["head.weight"].shape[0] if "head.weight" in weights.head else "its"
        logger.warning("%s is fine-tuned: its classifier (%s classes) is lost in %s", weights.path, classes, dest)
    if weights.spec is None:
        logger.warning("%s does not give the model's sizes: put %s into a folder of a published name", weights.path, dest)
    state, told = encoder_state(weights), describe(weights)
    if half:
        state = {name: tensor.half() if tensor.ndim in (2, 4) else tensor for name, tensor in state.items()}
    dest.parent.mkdir(parents=True, exist_ok=True)
    if dest.suffix == ".safetensors":
        from safetensors.torch import save

        write_bytes(dest, save({name: tensor.contiguous() for name, tensor in state.items()}, {"format": "pt", **told}))
    else:
        save_atomically({"model": state, "args": told}, dest)
    sizes = (path.stat().st_size / 1e6 for path in (weights.path, dest))
    logger.info("%s: %d of %d tensors, %.1f of %.1f MB", dest, len(state), len(weights.state), *reversed(list(sizes)))
