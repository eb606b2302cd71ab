"""Embeddings of captions, which M2D-CLAP is trained on.

    m2d captions captions.csv --text_encoder A --out captions.safetensors

LIST is a CSV with a column of ids (ytid, youtube_id or file_name, of which the stem is the id) and one or more of captions (all
that begin with "caption", or --columns); an id may come in several rows. The text encoder is a letter of the published ones

    A thenlper/gte-base    B google-bert/bert-base-uncased    N nvidia/NV-Embed-v2

or any model of the Hugging Face hub, or of sentence-transformers, by name or by folder. The output holds float16 embeddings, all
captions of an id one after the other, and is what `m2d train clap --file_caption` takes. What is done is kept in OUT.partial/
until the end: the same command continues a run that was killed.

    m2d captions --from_npy capemb_GTEbase_AC.npy --out captions.safetensors

converts a published file, a pickled dict of arrays, without running code in it.
"""

import argparse
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.captions.store import ID_COLUMNS, CaptionTexts, caption_arrays, read_texts
from ..data.captions.writer import read_pickled, write_embeddings
from ..models.text_encoder import POOLINGS, TextEncoder, load_text_encoder
from ..utils.device import pick_device
from ..utils.errors import FileError, UserError
from ..utils.outputs import OVERWRITE_HELP, check_outputs
from ..utils.own_files.partial_rows import PartialRows
from ..utils.parallel import Progress
from ..utils.program import ArgumentParser, run_program

SUFFIXES = (".safetensors", ".npz")

logger = logging.getLogger("m2d")


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path, metavar="LIST", nargs="?", help="a CSV of ids and captions")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors (or .npz) file to write")
    parser.add_argument("--from_npy", type=Path, metavar="NPY", help="in place of LIST: a published file to convert")
    parser.add_argument("--text_encoder", default="A", help="a letter, a model's name, or a folder")
    parser.add_argument("--tokenizer", help="name or folder of the tokenizer, where it is not the text encoder's")
    parser.add_argument("--pooling", choices=POOLINGS, help="how a text's vector is made; default: the model's own, else mean")
    parser.add_argument("--columns", default="", help="the columns of captions, separated by commas")
    parser.add_argument("--id_column", default="", help=f"the column of ids; default: the first of {', '.join(ID_COLUMNS)}")
    parser.add_argument("--truncate", action="store_true", help="cut captions that are longer than the text encoder takes")
    parser.add_argument("--trust_remote_code", action="store_true", help="run Python code that comes with the text encoder")
    parser.add_argument("--batch_size", type=int, default=64, help="captions encoded at a time")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if (args.list is None) == (args.from_npy is None):
        parser.error("name the captions: LIST, or --from_npy NPY")
    return run_program(lambda: write(args), "interrupted: the same command continues")


def write(args: argparse.Namespace) -> None:
    """Write the embeddings.

    Raises:
        OSError, ValueError: captions, text encoder or output cannot be used.
    """
    if args.out.suffix not in SUFFIXES:
        raise UserError(f"--out {args.out}: expected a name that ends in .safetensors or .npz")
    if args.batch_size < 1:
        raise UserError("--batch_size must be at least 1")
    check_outputs([args.out], [args.from_npy or args.list], args.overwrite)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.from_npy:
        arrays = read_pickled(args.from_npy)
        write_embeddings(args.out, arrays, {"source": args.from_npy.name})
        _report(args.out, arrays)
        return
    captions = read_texts(args.list, [name.strip() for name in args.columns.split(",") if name.strip()], args.id_column)
    encoder = load_text_encoder(
        args.text_encoder, tokenizer=args.tokenizer, pooling=args.pooling, trust_remote_code=args.trust_remote_code
    ).to(pick_device(args.device))
    _encode(captions, encoder, args)


def _encode(captions: CaptionTexts, encoder: TextEncoder, args: argparse.Namespace) -> None:
    texts = hashlib.sha256(captions.texts.blob.tobytes() + captions.texts.offsets.tobytes()).hexdigest()
    what = {"text_encoder": encoder.name, "pooling": args.pooling or "", "tokenizer": args.tokenizer or ""}
    settings = {**what, "captions": texts, "truncate": args.truncate}
    total = len(captions.texts)
    with PartialRows(args.out, settings, encoder.width, np.float16, args.overwrite) as kept, torch.inference_mode():
        if kept.rows:
            logger.info("continuing: %d of %d captions are done", kept.rows, total)
        with Progress(total - kept.rows, "caption") as progress:
            while kept.rows < total:
                numbers = np.arange(kept.rows, min(kept.rows + args.batch_size, total))
                kept.append(_half(encoder(captions.take(numbers), args.truncate), captions, numbers))
                progress.update(len(numbers))
        arrays = {"embeddings": kept.all(), **caption_arrays(captions.ids, captions.offsets)}
        write_embeddings(args.out, arrays, {name: value for name, value in what.items() if value})
        kept.remove()
    _report(args.out, arrays)


def _half(embeddings: torch.Tensor, captions: CaptionTexts, numbers: np.ndarray) -> np.ndarray:
    """Embeddings in float16.

    Raises:
        FileError: one is not finite in it.
    """
    half = embeddings.half().cpu().numpy()
    bad = np.flatnonzero(~np.isfinite(half).all(axis=1))
    if len(bad):
        raise FileError(f"{captions.source}: not finite: the embedding of {captions.texts[int(numbers[bad[0]])]!r}")
    return half


def _report(out: Path, arrays: dict[str, np.ndarray]) -> None:
    count, width = arrays["embeddings"].shape
    logger.info("%s: %d captions of %d ids, width %d", out, count, len(arrays["offsets"]) - 1, width)


if __name__ == "__main__":
    sys.exit(main())
