"""Embeddings of files as a page to look at in a browser.

    m2d embed recordings/ --weights CHECKPOINT --out embeddings.npz
    m2d explore embeddings.npz        # writes embeddings.html

The page holds a map (PCA; UMAP too where umap-learn is installed), clusters, and the nearest neighbours of each file. It plays
the files that are there: the first seconds of up to --sounds files are in the page, of more files it links to them.
"""

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ..report.embedding import MOST_GROUPS
from ..report.explore import explore_data, read_embeddings
from ..report.page import write_page
from ..utils.errors import UserError
from ..utils.names import shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program

_PROGRAM = "m2d explore"  # in the metadata of what it writes
_SCRIPTS = ("base.js", "map.js", "explore.js")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS.npz", help="what m2d embed wrote")
    parser.add_argument("--out", type=Path, help="the page to write (.html); default: beside the embeddings")
    parser.add_argument("--clusters", type=int, help=f"how many, 2 to {MOST_GROUPS}; default: those that are most apart")
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="where the files are, if they have moved")
    parser.add_argument("--sounds", type=int, default=200, help="include the sound of up to this many files; link to the others")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    return run_program(lambda: explore(args))


def explore(args: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        OSError, ValueError: it cannot be done; names the reason.
    """
    if args.clusters is not None and not 2 <= args.clusters <= MOST_GROUPS:
        raise UserError(f"--clusters is from 2 to {MOST_GROUPS}")
    out = args.out or args.embeddings.with_suffix(".html")
    if out.suffix != ".html":
        raise UserError(f"--out {shown(out)}: expected a name that ends in .html")
    check_outputs([out], [args.embeddings], args.overwrite, lambda path: drawn_by(path, _PROGRAM))
    found = read_embeddings(args.embeddings)
    data = explore_data(args.embeddings, out, found, args.clusters, args.audio, args.sounds)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, f"{data['title']}: embeddings", data, _SCRIPTS, _PROGRAM)
    print(f"page: {shown(out)} ({out.stat().st_size / 2**20:.1f} MB)")
    if args.open:
        webbrowser.open(out.absolute().as_uri())


if __name__ == "__main__":
    sys.exit(main())
