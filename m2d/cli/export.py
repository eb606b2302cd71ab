"""A checkpoint in a form to use or to share elsewhere.

    m2d export m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth \\
        m2d_vit_base-80x608p16x16-221006-mr7_enconly/checkpoint-300.pth
    m2d export CHECKPOINT encoder.safetensors
    m2d export CHECKPOINT --to hf my-model --licence cc-by-4.0
    m2d export CHECKPOINT --to onnx model.onnx

SRC is a file, a folder (its newest checkpoint), an https address, or hf:owner/name[@revision]. What is written:

    encoder  a file (.pth or .safetensors) with the online encoder and norm_stats, at a third of the size or less, which
             holds its sizes inside too: under `args` in a .pth, in the metadata of a .safetensors
    hf       a folder for Hugging Face's transformers: config.json, model.safetensors, modeling_m2d.py, a feature extractor
             and a model card, with the classifier of a fine-tuned checkpoint. Every --weights takes the folder too
    onnx     an ONNX file: waveforms in; clip and frame embeddings out, and logits of a fine-tuned checkpoint. Batches and
             clips of any length

A model card names a licence only where it is known: NTT's where the checkpoint's name or settings name released weights, else
--licence. Nothing is uploaded: --push prints the command that does it.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint.weights import Weights, read_weights
from ..utils.outputs import OVERWRITE_HELP
from ..utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

#: Flags that belong to some forms alone.
FORMS_OF = {
    "classes": ("hf", "onnx"),
    "single": ("hf", "onnx"),
    "licence": ("hf",),
    "push": ("hf",),
    "precision": ("onnx", "encoder"),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("src", metavar="SRC", help="checkpoint: a file, a folder, an https address, or hf:owner/name")
    parser.add_argument("dest", metavar="DEST", type=Path, nargs="?", help="the file or the folder to write")
    parser.add_argument("--out", type=Path, metavar="DEST", help="the same")
    parser.add_argument("--to", choices=("encoder", "hf", "onnx"), default="encoder", help="what to write")
    parser.add_argument("--classes", type=Path, help="hf, onnx: names of a classifier's classes, as m2d tag takes them")
    parser.add_argument("--single", action="store_true", help="hf, onnx: classes exclude each other (softmax)")
    parser.add_argument("--licence", "--license", metavar="ID", help="hf: the weights' licence, such as cc-by-4.0, or ntt")
    parser.add_argument("--push", metavar="OWNER/NAME", help="hf: print the command that uploads the folder")
    parser.add_argument("--precision", choices=("float32", "float16"), help="onnx, encoder: of the weights; none: float32")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    if (args.dest is None) == (args.out is None):
        parser.error("name what to write: DEST, or --out DEST")
    args.dest = args.dest or args.out
    for name, forms in FORMS_OF.items():
        if getattr(args, name) and args.to not in forms:
            parser.error(f"--{name}: only with --to {' or '.join(forms)}")
    return args


def export_hub_folder(weights: Weights, args: argparse.Namespace) -> None:
    """Write the folder that the arguments ask for."""
    from ..share.classes import classes_of
    from ..share.hugging_face import export_folder
    from ..share.licence import find_licence

    licence = find_licence(weights, args.licence)
    export_folder(weights, args.dest, licence, classes_of(weights, args.classes, args.single), args.overwrite)
    if licence.name is None:
        logger.warning("the licence of the weights is not known: the model card says so; --licence states it")
    if args.push:
        print(shlex.join(["hf", "upload", "--private", args.push, str(args.dest)]))


def export_onnx_file(weights: Weights, args: argparse.Namespace) -> None:
    """Write the file that the arguments ask for."""
    from ..share.classes import classes_of
    from ..share.onnx_file import export_onnx

    classes = classes_of(weights, args.classes, args.single)
    export_onnx(weights, args.dest, classes, args.precision == "float16", args.overwrite)


def export_encoder_file(weights: Weights, args: argparse.Namespace) -> None:
    """Write the file that the arguments ask for."""
    from ..share.encoder import export_encoder

    export_encoder(weights, args.dest, args.overwrite, half=args.precision == "float16")


def export(args: argparse.Namespace) -> None:
    """Write what the arguments ask for.

    Raises:
        OSError, ValueError: the checkpoint cannot be used, or nothing can be written.
    """
    weights = read_weights(args.src)
    {"encoder": export_encoder_file, "hf": export_hub_folder, "onnx": export_onnx_file}[args.to](weights, args)
    if weights.has_projectors:
        logger.warning(
            "%s is an M2D-CLAP checkpoint; %s holds only its encoder, which cannot compare sounds with texts",
            weights.path,
            args.dest,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    return run_program(lambda: export(args))


if __name__ == "__main__":
    sys.exit(main())
