"""The encoder alone, taken out of a checkpoint: what evaluation and further use need, at a third of the size or less.

    m2d export m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth \
        m2d_vit_base-80x608p16x16-221006-mr7_enconly/checkpoint-300.pth
    m2d export CHECKPOINT encoder.safetensors

SRC is a file, a folder (its newest checkpoint) or an https address. DEST holds the online encoder and norm_stats, and
tells its sizes from inside too: under `args` in a .pth, in the metadata of a .safetensors.
"""

import json
import logging
import sys
from pathlib import Path

import torch

from ..checkpoint.file import resolve
from ..checkpoint.weights import Weights, read_weights, save_atomically
from ..utils.atomic_file import write_bytes
from ..utils.outputs import OVERWRITE_HELP, check_outputs
from ..utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

ENCODER = ("cls_token", "pos_embed", "patch_embed.", "blocks.", "norm.", "norm_stats")


def encoder_state(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors of the online encoder and norm_stats, under the published names."""
    return {name: tensor.clone() for name, tensor in weights.state.items() if name.startswith(ENCODER)}


def describe(weights: Weights) -> dict[str, str]:
    """What a file tells about itself: model, input_size, patch_size, sr, norm_stats, as far as it is known."""
    told = {}
    if weights.spec:
        input_size, patch_size, rate, model = weights.spec
        told = dict(model=model, input_size="x".join(map(str, input_size)), patch_size="x".join(map(str, patch_size)), sr=rate)
    if weights.norm_stats:
        told["norm_stats"] = json.dumps(weights.norm_stats)
    return told


def convert(source: str, dest: Path, overwrite: bool = False) -> None:
    """Write the encoder of `source` to `dest`, a .pth or .safetensors file; an existing one is replaced on `overwrite`."""
    if dest.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"DEST {dest}: the name of a file that ends in .pth or .safetensors is expected")
    path = resolve(source)
    check_outputs([dest], [path], overwrite)
    weights = read_weights(path)
    if weights.head:
        classes = weights.head["head.weight"].shape[0] if "head.weight" in weights.head else "its"
        logger.warning("%s is fine-tuned: its classifier (%s classes) is lost in %s", weights.path, classes, dest)
    if weights.spec is None:
        logger.warning("%s does not tell the model's sizes: put %s into a folder of a published name", weights.path, dest)
    state, told = encoder_state(weights), describe(weights)
    dest.parent.mkdir(parents=True, exist_ok=True)
    if dest.suffix == ".safetensors":
        from safetensors.torch import save

        write_bytes(dest, save({name: tensor.contiguous() for name, tensor in state.items()}, {"format": "pt", **told}))
    else:
        save_atomically({"model": state, "args": told}, dest)
    sizes = (path.stat().st_size / 1e6 for path in (weights.path, dest))
    logger.info("%s: %d of %d tensors, %.1f of %.1f MB", dest, len(state), len(weights.state), *reversed(list(sizes)))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("src", metavar="SRC", help="checkpoint: a file, a folder, or an https address")
    parser.add_argument("dest", metavar="DEST", type=Path, nargs="?", help="the .pth or .safetensors file to write")
    parser.add_argument("--out", type=Path, metavar="DEST", help="the same")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    if (args.dest is None) == (args.out is None):
        parser.error("name the file to write: DEST, or --out DEST")
    return run_program(lambda: convert(args.src, args.dest or args.out, args.overwrite))


if __name__ == "__main__":
    sys.exit(main())
