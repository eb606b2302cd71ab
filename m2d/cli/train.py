"""Pre-train a model.

    m2d train [m2d|mae|as|s|clap|clap-only] FLAGS
    torchrun --nproc_per_node=4 -m m2d train [m2d|mae|as|s|clap|clap-only] FLAGS

m2d (the default)   M2D; M2D-X with --teacher           = python train_audio.py
mae                 MAE, MSM-MAE                        = python mae_train_audio.py
as                  M2D-AS, on labelled clips           = python audioset/train_as.py
s                   M2D-S, on speech with features      = python speech/train_speech.py
clap                M2D-CLAP, on clips with captions    = python clap/train_clap.py
clap-only           its text encoder (stages 2 and 2.1) = python clap/clap_only.py

`m2d train mae --help` lists the flags of mae.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

from ..train import pretrain
from ..train.distributed.launch import exit_process
from ..train.programs import PROGRAMS
from ..utils.program import EXIT_USAGE, did_you_mean


def main(argv: Sequence[str]) -> int:
    """The command line; returns the exit status. One of several processes ends here, without returning."""
    words = list(argv)
    if words and words[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0
    variant = words.pop(0) if words and not words[0].startswith("-") else "m2d"
    if variant not in PROGRAMS:
        hint = did_you_mean(variant, list(PROGRAMS))
        print(f"m2d train: error: {variant}: choose from {', '.join(PROGRAMS)}{hint}", file=sys.stderr)
        return EXIT_USAGE
    exit_process(pretrain.main(replace(PROGRAMS[variant], prog=f"m2d train {variant}"), words))
