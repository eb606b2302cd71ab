"""What checkpoints hold: every layout ever published, read to one form, and loaded with a report."""

import argparse
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError, MissingWeightsError
from .file import (
    checkpoints_in,
    is_whole,
    load_file,
    load_mapped,
    resolve,
    save_atomically,
    verify,
)
from .mapped import MappedFile
from .spec import ModelSpec, agreed_spec

__all__ = [
    "CheckpointError",
    "LoadReport",
    "Weights",
    "checkpoints_in",
    "is_whole",
    "load_file",
    "load_into",
    "read_weights",
    "resolve",
    "save_atomically",
    "verify",
]

log = logging.getLogger("m2d")

#: Made by the model for its own grid.
POSITIONS = ("pos_embed", "decoder_pos_embed")
#: Layers of a task, not of the model: another task's have another shape, and keep their start.
TASK_LAYERS = ("offline_predictor.", "text_proj.")
_ANCHOR = "patch_embed.proj.weight"
_ENCODER = ("patch_embed.", "blocks.", "norm.", "cls_token")
_DIMENSIONS = {
    _ANCHOR: 4,
    "pos_embed": 3,
    "decoder_pos_embed": 3,
    "cls_token": 3,
    "offline_predictor.weight": 2,
    "audio_proj.0.weight": 2,
    "audio_proj.sem_token": 3,
    "audio_proj.sem_blocks.0.mlp.fc1.bias": 1,
    "text_proj.weight": 2,
    "text_proj.0.weight": 2,
    "text_proj.2.weight": 2,
    "head.weight": 2,
}
_MOST_BLOCKS = 256
#: M2D-CLAP's of 2025: what comes before the audio model's names, beside which the text encoder is.
_BACKBONE = "backbone."
_TEXT_ENCODER = "text_encoder."
_PROJECTORS = ("audio_proj.", "text_proj.", "logit_scale")
_HEAD_NAMES = (
    (re.compile(r"(?:^|\.)head\.norm\.(running_mean|running_var|num_batches_tracked)$"), "head_norm."),
    (re.compile(r"(?:^|\.)head_norm\.(running_mean|running_var|num_batches_tracked)$"), "head_norm."),
    (re.compile(r"(?:^|\.)head\.mlp\.mlp\.0\.(weight|bias)$"), "head."),
    (re.compile(r"(?:^|\.)head\.(weight|bias)$"), "head."),
    (re.compile(r"^classifier\.(weight|bias)$"), "head."),  # app/finetune.py's: without batch norm
)


@dataclass(frozen=True)
class Weights:
    """A checkpoint in one form.

    Attributes:
        state: the model's tensors under the published names; M2D-CLAP's projectors are among them.
        text: a text encoder's tensors, under the names that it has inside M2D-CLAP.
        head: a classifier's tensors as `head_norm.running_mean`, `…_var`, `head.weight` `[classes, D]`, `head.bias`.
        args: the settings it was trained with.
        spec: from the folder's name, the file's name, or `args`; None where none of them has them.
        norm_stats: (mean, std) of the log-mel values it was trained on; None in checkpoints of 2022.
        epoch: the epoch after which it was saved.
        path: the file.
        layout: what kind of file it is, in words.
        mapped: the file, where the tensors' memory is mapped from it.
        classes: names of the classifier's classes, where the file holds them.
        single_label: the classifier was trained for classes that exclude each other.
        events: the classifier was trained on time steps.
    """

    state: dict[str, torch.Tensor]
    text: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    args: dict | None
    spec: ModelSpec | None
    norm_stats: tuple[float, float] | None
    epoch: int | None
    path: Path
    layout: str
    mapped: MappedFile | None
    classes: list[str] | None = None
    single_label: bool = False
    events: bool = False

    @property
    def has_projectors(self) -> bool:
        """Whether it is M2D-CLAP's, and compares sounds with texts."""
        return any(name.startswith(_PROJECTORS[:2]) for name in self.state)


def _tensors(saved: Mapping, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside what was saved."""
    for key in ("model", "state_dict"):
        if isinstance(saved.get(key), Mapping):
            saved = saved[key]
    tensors = {name: value for name, value in saved.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_complex():
            raise CheckpointError(f"{path}: {name} is no plain tensor of weights")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} is {list(tensor.shape)}, and the file holds only a part of it")
    return {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}


def _prefix(names: Iterable[str], path: Path) -> str:
    """What comes before the model's own names: nothing, `module.`, `module.ar.runtime.backbone.`, …

    Where there are names that begin with `backbone.`, these alone are the model's.
    """
    names = list(names)
    names = [name for name in names if name.startswith(_BACKBONE)] or names
    prefixes = [name.removesuffix(_ANCHOR) for name in names if name == _ANCHOR or name.endswith("." + _ANCHOR)]
    if len(prefixes) == 1:
        return prefixes[0]
    if prefixes:
        raise CheckpointError(f"{path} holds {len(prefixes)} models, under {', '.join(map(repr, prefixes))}: keep one of them")
    shown = f"such names as {', '.join(names[:3])}" if names else "no tensors"
    raise CheckpointError(f"{path} is no checkpoint of an M2D model: no {_ANCHOR} in it, but {shown}")


def _head(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    head = {}
    for name, tensor in tensors.items():
        for pattern, prefix in _HEAD_NAMES:
            if found := pattern.search(name):
                head[prefix + found[1]] = tensor
    return head


def _settings(saved: Mapping) -> dict | None:
    args = saved.get("args")
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else None


def _class_names(saved: Mapping, head: Mapping[str, torch.Tensor]) -> list[str] | None:
    names = saved.get("classes")
    if not isinstance(names, list) or "head.weight" not in head or len(names) != len(head["head.weight"]):
        return None
    return names if all(isinstance(name, str) for name in names) else None


def _norm_stats(state: Mapping[str, torch.Tensor], path: Path) -> tuple[float, float] | None:
    """Mean and standard deviation; None in checkpoints of 2022."""
    if "norm_stats" not in state:
        return None
    values = state["norm_stats"].flatten().tolist()
    if len(values) != 2 or not all(map(math.isfinite, values)) or values[1] <= 0:
        raise CheckpointError(f"{path}: norm_stats are {values[:3]}, expected a mean and a standard deviation above 0")
    return float(values[0]), float(values[1])


def _epoch(saved: Mapping, path: Path) -> int | None:
    epoch = saved.get("epoch")
    if epoch is None:
        return None
    if not isinstance(epoch, int) or not 0 <= epoch < 1 << 60:
        raise CheckpointError(f"{path}: epoch is {str(epoch)[:50]}, expected a number of epochs")
    return epoch


def _check_shapes(state: Mapping[str, torch.Tensor], path: Path) -> None:
    """The model is built by some tensors' sizes: they have as many dimensions as they should, and the blocks a limit."""
    for name, ndim in _DIMENSIONS.items():
        if name in state and (state[name].ndim != ndim or 0 in state[name].shape):
            raise CheckpointError(f"{path}: {name} is {list(state[name].shape)}, expected {ndim} dimensions")
    for part in ("blocks", "decoder_blocks", "target_blocks"):
        if block_count(state, part) > _MOST_BLOCKS:
            raise CheckpointError(f"{path}: more than {_MOST_BLOCKS} {part}: no checkpoint of an M2D model")


def block_count(names: Iterable[str], part: str = "blocks") -> int:
    """Transformer blocks of an encoder, or of a `decoder_blocks`, among the names of a state dict."""
    return len({name.split(".")[1] for name in names if name.startswith(f"{part}.")})


def _parts(tensors: Mapping[str, torch.Tensor], prefix: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The model's tensors with M2D-CLAP's projectors, and a text encoder's. Both may be beside the model's own."""
    outer = prefix.removesuffix(_BACKBONE)
    around = {name.removeprefix(outer): tensor for name, tensor in tensors.items() if name.startswith(outer)}
    text = {name.removeprefix(_TEXT_ENCODER): tensor for name, tensor in around.items() if name.startswith(_TEXT_ENCODER)}
    state = {name: tensor for name, tensor in around.items() if name.startswith(_PROJECTORS)}
    state |= {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name: tensor for name, tensor in state.items() if not name.startswith(_TEXT_ENCODER)}, text


def _layout(saved: Mapping, path: Path, prefix: str, head: Mapping) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
    if prefix == _BACKBONE and not head:
        return "M2D-CLAP of 2025"
    if prefix.endswith("backbone."):
        return f"fine-tuned model{' with its head' if head else ''}"
    return "training checkpoint" if "optimizer" in saved else "weights alone"


def read_weights(source: str | Path) -> Weights:
    """Read a checkpoint of any published layout; the tensors stay mapped to the file until they are used.

    Args:
        source: as for `resolve`.

    Raises:
        FileNotFoundError, CheckpointError: as `load_file`; also for a file of something else than an M2D model.
    """
    path = resolve(source)
    saved, mapped = load_mapped(path)
    tensors = _tensors(saved, path)
    prefix = _prefix(tensors, path)
    state, text = _parts(tensors, prefix)
    head = _head({name: tensor for name, tensor in tensors.items() if not prefix or not name.startswith(prefix)})
    _check_shapes({**state, **head}, path)
    args = _settings(saved)
    return Weights(
        state=state,
        text=text,
        head=head,
        args=args,
        spec=agreed_spec(path, args),
        norm_stats=_norm_stats(state, path),
        epoch=_epoch(saved, path),
        path=path,
        layout=_layout(saved, path, prefix, head),
        mapped=mapped,
        classes=_class_names(saved, head),
        single_label=saved.get("single_label") is True,
        events=saved.get("events") is True,
    )


# ---------------------------------------------------------------- loading


def _summary(names: Iterable[str]) -> str:
    """Names by what comes first in them, with counts: `blocks (144), norm (2)`."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


@dataclass(frozen=True)
class LoadReport:
    """Where a model's tensors came from, by name; `str()` sums it up.

    Attributes:
        loaded: taken from the checkpoint.
        new: not in the checkpoint, or of another task: left as the model started them.
        unused: in the checkpoint, not in the model.
        resized: positions of another grid, made by the model for its own.
        copied: target encoder, copied from the online one because the checkpoint brings none.
        kept: statistics of the model, kept in place of the checkpoint's.
    """

    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} tensors: {_summary(self.loaded)}"]
        for names, words in (
            (self.resized, "positions regenerated for this input size"),
            (self.copied, "target encoder copied from the online one, as the checkpoint has none"),
            (self.kept, "kept from this run"),
            (self.new, "new, left as they start"),
            (self.unused, "unused of the checkpoint"),
        ):
            if names:
                parts.append(f"{words}: {_summary(names)}")
        return "; ".join(parts)


def _fits(name: str, own: torch.Tensor, stored: torch.Tensor) -> bool:
    """Whether a stored tensor can be taken; False where the model keeps its own.

    Raises:
        CheckpointError: the shapes differ, and the model needs it.
    """
    if own.shape == stored.shape:
        return True
    same_width = own.ndim == stored.ndim and own.shape[-1] == stored.shape[-1]
    if (name in POSITIONS and same_width) or name.startswith(TASK_LAYERS):
        return False
    hint = ": the patches differ in size" if name == _ANCHOR and own.shape[0] == stored.shape[0] else ""
    raise CheckpointError(
        f"{name} is {list(stored.shape)} in the checkpoint and {list(own.shape)} in the model{hint}. Use the model and "
        "patch size that the checkpoint was trained with, or take its encoder alone (util/to_encoder_only_weight.py)"
    )


@torch.no_grad()
def copy_tensor(own: torch.Tensor, stored: torch.Tensor, mapped: MappedFile | None) -> None:
    """Copy a checkpoint's tensor into a model's, and give its memory back where it is mapped from the file."""
    if mapped is not None:
        mapped.check()
    own.copy_(stored)
    if mapped is not None:
        mapped.release(stored)


@torch.no_grad()
def load_into(
    model: Any,
    state: Mapping[str, torch.Tensor],
    take_norm_stats: bool = True,
    mapped: MappedFile | None = None,
    allow_missing: bool = False,
) -> LoadReport:
    """Load a checkpoint's tensors that fit, and report the rest.

    Args:
        model: one of models_mae's.
        state: tensors under the published names (`Weights.state`).
        take_norm_stats: take the checkpoint's statistics; otherwise the model keeps its own.
        mapped: the file that the tensors are untouched views of (`Weights.mapped`): the memory of each is given back once
            it is copied.
        allow_missing: leave parts of the encoder as the model starts them where the checkpoint does not have them.

    Raises:
        CheckpointError: a tensor has another shape (positions of another grid and layers of another task aside), a part of
            the encoder is missing, or the encoder has more blocks than the model.
    """
    report = LoadReport()
    own = model.state_dict()
    fitting = {name: _fits(name, own[name], tensor) for name, tensor in state.items() if name in own}
    _check_encoder(own, state, fitting, allow_missing)
    for name, tensor in own.items():
        if not fitting.get(name):
            (report.resized if name in POSITIONS and name in state else report.new).append(name)
        elif name == "norm_stats" and not take_norm_stats:
            report.kept.append(name)
        else:
            copy_tensor(tensor, state[name], mapped)
            report.loaded.append(name)
    report.unused.extend(name for name in state if name not in own)
    targets = [name for name in report.new if name.startswith(("target_blocks.", "target_norm."))]
    if targets and not any(name.startswith("target_blocks.") for name in state):
        model.copy_online_to_target()
        report.copied.extend(targets)
        report.new[:] = [name for name in report.new if name not in targets]
    return report


def _check_encoder(
    own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], fitting: Mapping[str, bool], allow_missing: bool
) -> None:
    if not any(fits for name, fits in fitting.items() if name.startswith("blocks.")):
        raise CheckpointError(f"the checkpoint has no encoder blocks: only {_summary(state) or 'nothing'}")
    theirs, ours = block_count(state), block_count(own)
    if theirs > ours:
        raise CheckpointError(f"the checkpoint has {theirs} encoder blocks, the model has {ours}")
    missing = [name for name in own if name.startswith(_ENCODER) and not fitting.get(name)]
    if missing and not allow_missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise MissingWeightsError(f"parts of the model's encoder are not in the checkpoint: {', '.join(missing[:3])}{more}")
