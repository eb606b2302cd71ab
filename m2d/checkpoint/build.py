"""A checkpoint's model, built with its sizes and its weights."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from ..models import registry
from ..models.pos_embed import resize_positions, sincos_positions
from ..models.vit import DEFAULT_NORM_STATS, AudioViT
from .hugging_face import PREFIX
from .spec import EXAMPLE, PATTERN, ModelSpec, spec_of_path
from .weights import CheckpointError, Weights, block_count, load_into

log = logging.getLogger("m2d")

DEFAULT_DECODER_DEPTH = 8


def is_random(weight_file: str | Path) -> bool:
    """Whether a path asks for random weights: it ends in `random`."""
    return str(weight_file).rstrip("/").endswith("random") and not str(weight_file).startswith(PREFIX)


def no_sizes(weight_file: str | Path) -> CheckpointError:
    """The error for a checkpoint whose sizes are neither in its name nor in the file."""
    return CheckpointError(
        f"{weight_file}: neither the folder's name, nor the file's, nor the file itself gives the model's sizes. "
        f"Put it into a folder named {PATTERN}, such as {EXAMPLE}"
    )


def _fit_positions(state: Mapping[str, torch.Tensor], sizes: ModelSpec, frames: int) -> dict[str, torch.Tensor]:
    """Stored positions (published ones where none is stored), fitted to an input of `frames` frames."""
    rows, columns = (size // patch for size, patch in zip(sizes.input_size, sizes.patch_size, strict=True))
    stored = {name: tensor for name, tensor in state.items() if name in ("pos_embed", "decoder_pos_embed")}
    for name, positions in stored.items():
        if positions.shape[1] != 1 + rows * columns:
            raise CheckpointError(
                f"{name} of the checkpoint has {positions.shape[1]} positions; {sizes} has a grid of {rows} x {columns} "
                f"and needs {1 + rows * columns}: the name of the folder or the file does not fit what is in it"
            )
    if "pos_embed" not in stored:
        stored["pos_embed"] = sincos_positions(state["patch_embed.proj.weight"].shape[0], (rows, columns))
    return {name: resize_positions(p.float(), (rows, columns), frames // sizes.patch_size[1]) for name, p in stored.items()}


def _options(sizes: ModelSpec, state: Mapping[str, torch.Tensor], frames: int) -> dict:
    """Builder options that follow from a checkpoint's sizes and tensors."""
    options = dict(img_size=[sizes.input_size[0], frames], patch_size=sizes.patch_size)
    options["decoder_depth"] = block_count(state, "decoder_blocks") or DEFAULT_DECODER_DEPTH
    if "offline_predictor.weight" in state:
        options["off_emb_dim"] = state["offline_predictor.weight"].shape[0]
    if "text_proj.weight" in state:
        options["off_emb_dim"] = state["text_proj.weight"].shape[1]
    options["sem_mode"] = len({name.split(".")[2] for name in state if name.startswith("audio_proj.sem_blocks.")})
    return options


def _build(name: str, options: dict, covered: set[str]) -> AudioViT:
    """Build on the meta device (no random initialisation) if the checkpoint covers every tensor."""
    with torch.device("meta"):
        model = registry.build(name, **options)
    if set(model.state_dict()) <= covered:
        # As `to_empty`, which for the strides of a tensor on the meta device imports half a second of sympy.
        return model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
    return registry.build(name, **options)


def random_backbone(weight_file: str | Path, encoder_only: bool, dur_frames: int | None) -> tuple[AudioViT, ModelSpec]:
    """A model of random weights, of the sizes in the path.

    Raises:
        CheckpointError: the path does not name them, or a model of that name is not known.
    """
    sizes = spec_of_path(weight_file)
    if sizes is None:
        raise no_sizes(weight_file)
    suffix = "_encoder_only" if encoder_only else ""
    return registry.build(sizes.model + suffix, **_options(sizes, {}, dur_frames or sizes.input_size[1])), sizes


def loaded_backbone(weights: Weights, encoder_only: bool, dur_frames: int | None) -> AudioViT:
    """A checkpoint's model with its weights.

    Args:
        weights: the checkpoint.
        encoder_only: the encoder alone, without decoder and target.
        dur_frames: frames of the model's input, in place of the checkpoint's; positions are fitted to them.

    Raises:
        CheckpointError: its sizes are not known or do not fit its tensors, or a part of the encoder is missing.
    """
    sizes = weights.spec
    if sizes is None:
        raise no_sizes(weights.path)
    if dur_frames is not None and dur_frames < sizes.patch_size[1]:
        raise ValueError(f"dur_frames={dur_frames} is shorter than a patch of {sizes.patch_size[1]} frames")
    frames = dur_frames or sizes.input_size[1]
    suffix = "_encoder_only" if encoder_only else ""
    try:
        state = {**weights.state, **_fit_positions(weights.state, sizes, frames)}
        state.setdefault("norm_stats", torch.tensor(DEFAULT_NORM_STATS))
        model = _build(sizes.model + suffix, _options(sizes, state, frames), set(state))
        report = load_into(model, state, mapped=weights.mapped)
    except ValueError as error:
        raise CheckpointError(f"{weights.path} does not fit {sizes.model}: {error}") from error
    log.info("%s: %s (%s)", weights.path, sizes, weights.layout)
    log.debug("%s: %s", weights.path, report)
    if report.new and not encoder_only:
        log.warning("%s has no %s: initialised at random", weights.path, ", ".join(sorted({n.split(".")[0] for n in report.new})))
    return model
