"""Pre-train a model.

    m2d train [m2d|mae|as|s] FLAGS
    torchrun --nproc_per_node=4 -m m2d train [m2d|mae|as|s] FLAGS

m2d (the default)   M2D; M2D-X with --teacher           = python train_audio.py
mae                 MAE, MSM-MAE                        = python mae_train_audio.py
as                  M2D-AS, on labelled clips           = python audioset/train_as.py
s                   M2D-S, on speech with features      = python speech/train_speech.py

`m2d train mae --help` lists the flags of mae.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..train import pretrain
from ..train.distributed import leave
from ..train.program import Recipe
from ..utils.errors import UserError
from ..utils.program import EXIT_USAGE, did_you_mean
from .clone import import_from_clone

#: Each variant's module and the name of its Recipe. The last two are in a clone of the project only.
VARIANTS = {
    "m2d": (".train.recipes", "M2D"),
    "mae": (".train.recipes", "MAE"),
    "as": ("audioset.train_as", "RECIPE"),
    "s": ("speech.train_speech", "RECIPE"),
}


def recipe_of(variant: str) -> Recipe:
    """The recipe of a variant.

    Raises:
        UserError: it is in a clone of the project only, and this is none.
    """
    module, name = VARIANTS[variant]
    if module.startswith("."):
        return getattr(importlib.import_module(module, __package__.rpartition(".")[0]), name)
    return getattr(import_from_clone(module), name)


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status. One of several processes ends here, without returning."""
    words = list(argv)
    if words and words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    variant = words.pop(0) if words and not words[0].startswith("-") else "m2d"
    if variant not in VARIANTS:
        return _refuse(f"{variant}: choose from {', '.join(VARIANTS)}{did_you_mean(variant, VARIANTS)}")
    try:
        recipe = recipe_of(variant)
    except UserError as error:
        return _refuse(str(error))
    leave(pretrain.main(replace(recipe, prog=f"m2d train {variant}"), words))


def _refuse(message: str) -> int:
    print(f"m2d train: error: {message}", file=sys.stderr)
    return EXIT_USAGE
