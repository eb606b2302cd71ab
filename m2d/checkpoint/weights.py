"""What checkpoints hold: every layout ever published, read to one form, and loaded with an account of it."""

import argparse
import ctypes
import logging
import mmap
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from .file import (
    CheckpointError,
    checkpoints_in,
    is_whole,
    load_file,
    resolve,
    save_atomically,
    verify,
)
from .spec import ModelSpec, spec_of_path, spec_of_settings

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
#: Layers of a task, not of the model: another task's have another shape, and start anew.
TASK_LAYERS = ("offline_predictor.",)
_ANCHOR = "patch_embed.proj.weight"
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
        state: the model's tensors under the published names.
        head: a classifier's tensors as `head_norm.running_mean`, `…_var`, `head.weight` `[classes, D]`, `head.bias`.
        args: the settings it was trained with.
        spec: from the folder's name, the file's name, or `args`; None where none of them tells.
        norm_stats: (mean, std) of the log-mel values it was trained on; None in checkpoints of 2022.
        epoch: the epoch after which it was saved.
        path: the file.
        layout: what kind of file it is, in words.
        mapped: the tensors' memory is the file's, mapped.
        classes: names of the classifier's classes, where the file holds them.
        single_label: the classifier was trained for classes that exclude each other.
    """

    state: dict[str, torch.Tensor]
    head: dict[str, torch.Tensor]
    args: dict | None
    spec: ModelSpec | None
    norm_stats: tuple[float, float] | None
    epoch: int | None
    path: Path
    layout: str
    mapped: bool
    classes: list[str] | None = None
    single_label: bool = False


def _tensors(saved: object, path: Path) -> dict[str, torch.Tensor]:
    """The state dict inside what was saved."""
    for key in ("model", "state_dict"):
        if isinstance(saved, Mapping) and isinstance(saved.get(key), Mapping):
            saved = saved[key]
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, not a dict of weights: no checkpoint of a model")
    tensors = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
    return {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}


def _prefix(names: Iterable[str], path: Path) -> str:
    """What stands before the model's own names: nothing, `module.`, `module.ar.runtime.backbone.`, …"""
    names = list(names)
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


def _settings(saved: object) -> dict | None:
    args = saved.get("args") if isinstance(saved, Mapping) else None
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else None


def _class_names(saved: Mapping, head: Mapping[str, torch.Tensor]) -> list[str] | None:
    names = saved.get("classes")
    if not isinstance(names, list) or "head.weight" not in head or len(names) != len(head["head.weight"]):
        return None
    return [str(name) for name in names]


def _layout(saved: Mapping, path: Path, prefix: str, head: Mapping) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
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
    saved = load_file(path)
    tensors = _tensors(saved, path)
    prefix = _prefix(tensors, path)
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    head = _head({name: tensor for name, tensor in tensors.items() if not prefix or not name.startswith(prefix)})
    args = _settings(saved)
    stats = state.get("norm_stats")
    epoch = saved.get("epoch")
    return Weights(
        state=state,
        head=head,
        args=args,
        spec=spec_of_path(path) or spec_of_settings(args),
        norm_stats=None if stats is None else (float(stats.flatten()[0]), float(stats.flatten()[1])),
        epoch=int(epoch) if epoch is not None else None,
        path=path,
        layout=_layout(saved, path, prefix, head),
        mapped=_is_mapped(tensors[prefix + _ANCHOR], path),
        classes=_class_names(saved, head),
        single_label=bool(saved.get("single_label")),
    )


# ---------------------------------------------------------------- loading


def _summary(names: Iterable[str]) -> str:
    """Names by what comes first in them, with counts: `blocks (144), norm (2)`."""
    counts = Counter(name.split(".")[0] for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


@dataclass(frozen=True)
class LoadReport:
    """What became of a model's tensors, by name; `str()` says it in a sentence or two.

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
        said = [f"loaded {len(self.loaded)} tensors: {_summary(self.loaded)}"]
        for names, words in (
            (self.resized, "positions regenerated for this input size"),
            (self.copied, "target encoder copied from the online one, as the checkpoint brings none"),
            (self.kept, "kept from this run"),
            (self.new, "new, left as they start"),
            (self.unused, "unused of the checkpoint"),
        ):
            if names:
                said.append(f"{words}: {_summary(names)}")
        return "; ".join(said)


def _is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether a tensor's memory is a mapping of the file (Linux only: elsewhere the answer is no)."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return False
    for line in maps.read_text().splitlines():
        start, end = (int(address, 16) for address in line.split(" ", 1)[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line.endswith(str(path.resolve()))
    return False


def _release_pages(tensor: torch.Tensor) -> None:
    """Give back the memory of a mapped tensor; it is read from the file again where it is used again."""
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _fits(name: str, own: torch.Tensor, stored: torch.Tensor) -> bool:
    """Whether a stored tensor can be taken; False where the model's own stands in.

    Raises:
        CheckpointError: the shapes differ, and nothing can stand in.
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
def load_into(
    model: nn.Module, state: Mapping[str, torch.Tensor], take_norm_stats: bool = True, mapped: bool = False
) -> LoadReport:
    """Load what fits of a checkpoint's tensors, and account for the rest.

    Args:
        model: one of models_mae's.
        state: tensors under the published names (`Weights.state`).
        take_norm_stats: take the checkpoint's statistics; otherwise the model keeps its own.
        mapped: the tensors are untouched views of a mapped file (`Weights.mapped`): the memory of each is given back once
            it is copied, so that the file does not count beside the model.

    Raises:
        CheckpointError: a tensor has another shape (positions of another grid and layers of another task aside), or
            nothing of the encoder is there.
    """
    report = LoadReport()
    own = model.state_dict()
    fitting = {name: _fits(name, own[name], tensor) for name, tensor in state.items() if name in own}
    if not any(fits for name, fits in fitting.items() if name.startswith("blocks.")):
        raise CheckpointError(f"the checkpoint holds no encoder blocks: only {_summary(state) or 'nothing'}")
    for name, tensor in own.items():
        if not fitting.get(name):
            (report.resized if name in POSITIONS and name in state else report.new).append(name)
        elif name == "norm_stats" and not take_norm_stats:
            report.kept.append(name)
        else:
            tensor.copy_(state[name])
            if mapped:
                _release_pages(state[name])
            report.loaded.append(name)
    report.unused.extend(name for name in state if name not in own)
    targets = [name for name in report.new if name.startswith(("target_blocks.", "target_norm."))]
    if targets and not any(name.startswith("target_blocks.") for name in state):
        model.copy_online_to_target()
        report.copied.extend(targets)
        report.new[:] = [name for name in report.new if name not in targets]
    return report
