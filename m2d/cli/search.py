"""The sounds of an index that are nearest to a text, or to another sound.

    m2d embed recordings/ --clap --weights m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025 --out sounds.npz
    m2d search "rain on a roof" "a dog barks" --index sounds.npz
    m2d search example.wav --index sounds.npz

A QUERY that is a file is a sound, any other a text, unless it ends as an audio file does (.wav). Printed are cosine and file, the
nearest first. The index is searched where it is on the disk: a million sounds take a second.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..audio.listing import FFMPEG_SUFFIXES, SNDFILE_SUFFIXES
from ..evaluation.sound_index import SoundIndex
from ..evaluation.zero_shot import add_text_flags, load_clap, sound_vectors
from ..utils.atomic_file import write_csv
from ..utils.errors import UserError
from ..utils.malloc import keep_freed_memory
from ..utils.names import shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, has_header
from ..utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

_COLUMNS = ("query", "rank", "cosine", "file_name")


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="texts, or audio files")
    parser.add_argument("--index", type=Path, required=True, help="the .npz that m2d embed --clap wrote")
    parser.add_argument("--weights", help="M2D-CLAP's checkpoint; none: the index's")
    parser.add_argument("--top", type=int, default=10, help="files shown")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write the files found as a table")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    add_text_flags(parser)
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    return parser


def search(args: argparse.Namespace) -> None:
    """Find and print the nearest sounds.

    Raises:
        OSError, UserError: a query or the index cannot be used.
    """
    if args.top < 1:
        raise UserError("--top must be at least 1")
    sounds = {query: Path(query) for query in args.queries if Path(query).is_file()}
    for query in args.queries:
        if query not in sounds and query.lower().endswith(SNDFILE_SUFFIXES + FFMPEG_SUFFIXES):
            raise FileNotFoundError(f"there is no file {shown(query)}")
    if args.out:
        check_outputs([args.out], [args.index, *sounds.values()], args.overwrite, lambda path: has_header(path, _COLUMNS))
    index = SoundIndex(args.index)
    runtime = load_clap(args.weights or index.weights, args)
    vectors = {}
    if sounds:
        found, left_out = sound_vectors(list(sounds.values()), runtime)
        if left_out:
            raise UserError(f"{shown(left_out[0])} cannot be read: see above")
        vectors = dict(zip(sounds, found, strict=True))
    texts = [query for query in args.queries if query not in sounds]
    if texts:
        vectors |= dict(zip(texts, runtime.encode_clap_text(texts, truncate=args.truncate), strict=True))
    queries = list(dict.fromkeys(args.queries))
    cosines, rows = index.nearest(torch.stack([vectors[query] for query in queries]), args.top)
    table = []
    for query, values, places in zip(queries, cosines.tolist(), rows.tolist(), strict=True):
        print(query)
        for rank, (cosine, row) in enumerate(zip(values, places, strict=True), start=1):
            print(f"  {cosine:6.3f}  {index.names[row]}")
            table.append((query, rank, f"{cosine:.4f}", str(index.names[row])))
    if args.out:
        write_csv(args.out, _COLUMNS, table)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    keep_freed_memory()
    return run_program(lambda: search(args))


if __name__ == "__main__":
    sys.exit(main())
