"""Zero-shot classification by M2D-CLAP: which of some classes' names is nearest to a sound."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..inference.classes import read_classes
from ..inference.embed import ClapVectors
from ..inference.runtime import RuntimeM2D
from ..inference.stream import check_finite, encode_files
from ..utils.device import no_tf32, pick_device
from ..utils.errors import UserError
from .scores import accuracy, mean_average_precision

DEFAULT_PROMPT = "{} can be heard"


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of a command that encodes texts."""
    parser.add_argument(
        "--text_encoder", metavar="NAME", help="a letter, a Hugging Face model or a folder; none: the weights' own"
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="the text encoder's tokenizer, where it is not to be downloaded")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the text encoder")
    parser.add_argument("--truncate", action="store_true", help="cut texts that are longer than the text encoder takes")


def load_clap(weights: str | Path, args: argparse.Namespace) -> RuntimeM2D:
    """The model of an M2D-CLAP checkpoint, with the text encoder that the flags of `add_text_flags` name, on --device.

    Raises:
        OSError, ValueError: it cannot be used, or has no projector.
    """
    no_tf32()
    settings = argparse.Namespace(
        text_encoder=args.text_encoder, tokenizer=args.tokenizer, trust_remote_code=args.trust_remote_code
    )
    runtime = RuntimeM2D(settings, weights).to(pick_device(args.device))
    runtime.check_clap()
    check_finite(runtime)
    return runtime


def sound_vectors(
    paths: Sequence[Path], runtime: RuntimeM2D, batch_size: int | None = None, workers: int | None = None
) -> tuple[torch.Tensor, list[Path]]:
    """Vectors of audio files, float32 `[N, D]` of length 1, without those that cannot be read; these, which are logged."""
    sink = ClapVectors(paths, runtime)
    encode_files(runtime, sink, batch_size, workers)
    found = [sink.vectors[clip] for clip in sorted(sink.vectors)]
    return torch.stack(found) if found else torch.zeros(0, runtime.backbone.embed_dim), sink.left_out


def class_names(source: str) -> list[str]:
    """Names of classes: those in a file (see `read_classes`), or those in a text, split at commas.

    Raises:
        UserError: there are none, or one is there twice.
        OSError, ValueError: the file cannot be read.
    """
    path = Path(source)
    is_file = len(source) < 1024 and path.is_file()
    if not is_file and re.fullmatch(r"[^,\s]+\.(csv|txt)", source):
        raise FileNotFoundError(f"--classes {source}: there is no such file")
    names = read_classes(path) if is_file else [name.strip() for name in source.split(",") if name.strip()]
    if not names:
        raise UserError(f"--classes {source!r} names no class: give names split at commas, or a file with one a line")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"--classes names {', '.join(repeated[:3])} more than once")
    return names


def prompts(names: Sequence[str], prompt: str = DEFAULT_PROMPT) -> list[str]:
    """The text of each class: its name, with spaces for underscores, in place of `{}`.

    Raises:
        UserError: the prompt has no such place.
    """
    if "{}" not in prompt:
        raise UserError(f"--prompt {prompt!r}: no {{}} in it, where the class is named")
    return [prompt.replace("{}", name.replace("_", " ")) for name in names]


def similarities(sounds: torch.Tensor, texts: torch.Tensor) -> np.ndarray:
    """Cosines `[N, C]` of sounds `[N, D]` with texts `[C, D]`."""
    return (F.normalize(sounds.float(), dim=1) @ F.normalize(texts.float(), dim=1).T).numpy()


def judge(scores: np.ndarray, targets: np.ndarray) -> tuple[str, float]:
    """How well scores `[N, C]` name the classes: the accuracy for classes `[N]`, the mAP for multi-hot labels `[N, C]`."""
    name, metric = ("mAP", mean_average_precision) if targets.ndim == 2 else ("accuracy", accuracy)
    return name, float(metric(scores, targets, np.ones((1, len(scores))))[0])
