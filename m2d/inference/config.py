"""Settings of a runtime, given or found in a checkpoint."""

from pathlib import Path
from typing import Any

import torch

from ..audio.logmel import PRESETS
from ..checkpoint.build import block_count, is_random, loaded_backbone, no_sizes, random_backbone
from ..checkpoint.weights import Weights, read_weights
from ..models.vit import AudioViT


class Config:
    """Settings of a runtime, and what it finds out: a plain container with defaults.

    Any object with attributes does in its place, such as EVAR's EasyDict; the runtime writes what it found into the one
    it was given (sizes, rates, statistics, feature_d).
    """

    weight_file = ""
    feature_d: Any = None
    norm_type = None
    pooling_type = "mean"
    model = ""
    input_size: Any = None
    patch_size: Any = None
    sr = "16k"
    training_mask = 0.0
    flat_features = False
    encoder_only = True
    dur_frames = None
    freeze_embed = None
    text_encoder: Any = None
    tokenizer: Any = None
    trust_remote_code = False

    def __init__(self, **settings):
        unknown = [name for name in settings if not hasattr(type(self), name)]
        if unknown:
            raise TypeError(f"unknown settings {', '.join(unknown)}")
        vars(self).update(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def given(value: Any, cfg: Any, name: str) -> Any:
    """An argument where one is given, else the entry of cfg, else the default; None, 'None' and '' count as not given."""
    for candidate in (value, getattr(cfg, name, None), getattr(Config, name)):
        if not (candidate is None or (isinstance(candidate, str) and candidate.strip() in ("", "None", "none", "null"))):
            return candidate
    return None


def flag(value: object) -> bool:
    """A yes or no that may come as text."""
    return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)


def get_backbone(
    cfg: Any, weight_file: str | Path, encoder_only: bool = True, dur_frames: int | None = None
) -> tuple[AudioViT, dict[str, torch.Tensor]]:
    """The model of a checkpoint, and the tensors of its classifier (empty where it has none).

    Writes into cfg: weight_file, model, input_size, patch_size, sr, the front end's sizes, mean, std, decoder_depth.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that cannot be used.
    """
    backbone, weights = open_checkpoint(cfg, weight_file, encoder_only, dur_frames)
    return backbone, weights.head if weights else {}


def open_checkpoint(
    cfg: Any, weight_file: str | Path, encoder_only: bool, dur_frames: int | None
) -> tuple[AudioViT, Weights | None]:
    """As `get_backbone`, with all that the checkpoint holds; None where the weights are random."""
    weights = None
    if is_random(weight_file):
        backbone, sizes = random_backbone(weight_file, encoder_only, dur_frames)
        decoder_depth = block_count(backbone.state_dict(), "decoder_blocks")
    else:
        weights = read_weights(weight_file)
        if weights.spec is None:
            raise no_sizes(weight_file)
        backbone, sizes = loaded_backbone(weights, encoder_only, dur_frames), weights.spec
        decoder_depth = block_count(weights.state, "decoder_blocks")
    if sizes.sr not in PRESETS:
        raise ValueError(f"{weight_file}: a sample rate of {sizes.sr} is not known: choose from {', '.join(PRESETS)}")
    mean, std = backbone.norm_stats.tolist()
    found: dict[str, object] = dict(
        weight_file=str(weight_file), model=sizes.model, sr=sizes.sr, mean=mean, std=std, decoder_depth=decoder_depth
    )
    found.update(input_size=list(backbone.patch_embed.img_size), patch_size=list(sizes.patch_size))
    found.update(vars(PRESETS[sizes.sr]))
    for name, value in found.items():
        setattr(cfg, name, value)
    return backbone, weights
