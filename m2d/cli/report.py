"""What training runs have learned, as a page to look at in a browser.

    m2d report RUN                    # writes RUN/report.html
    m2d report RUN OTHER_RUN CKPT     # side by side: report.html

RUN is a folder that `m2d train` or `m2d finetune` writes to, running, finished or stopped; CKPT a checkpoint. The page shows
losses, rates, speed and probes by epoch, what the encoder sees, reconstructions (MAE), a probe and a map of embeddings, nearest
neighbours, data and settings. It is one file that loads nothing. Clips come from the run's own list or pack.

With a picture's name, such as `--out learned.png`, one run is drawn as a picture: loss, mask, probe.
"""

import argparse
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ..report.build import report_data
from ..report.look import Source, open_look
from ..report.page import write_page
from ..report.picture import show
from ..report.runs import read_run
from ..utils.device import pick_device
from ..utils.errors import UserError
from ..utils.names import shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program

_PROGRAM = "m2d report"  # in the metadata of what it writes
_SCRIPTS = ("base.js", "chart.js", "map.js", "report.js")
_PICTURES = (".png", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    return run_program(lambda: report(args))


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN|CKPT", help="a run's folder, or a checkpoint")
    parser.add_argument("--out", type=Path, help="the page (.html) or picture (.png, .pdf, .svg) to write")
    parser.add_argument("--csv", type=Path, help="look at the clips of this list or pack, in place of the run's")
    parser.add_argument("--data_path", type=Path, help="the folder that the list's names start from, in place of the run's")
    parser.add_argument("--audio", type=Path, metavar="FOLDER", help="the sound of the clips, to play the nearest ones")
    parser.add_argument("--clips", type=int, default=400, help="clips that are encoded, as far as minutes allow; 0: none")
    parser.add_argument("--no_sound", action="store_true", help="hold no sound in the page")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser.parse_args(argv)


def report(args: argparse.Namespace) -> None:
    """Write the page, or the picture.

    Raises:
        OSError, ValueError: it cannot be done; names the reason.
    """
    if args.clips < 0:
        raise UserError("--clips is 0 or more")
    runs = [read_run(source) for source in args.runs]
    out = args.out or (runs[0].folder / "report.html" if len(runs) == 1 else Path("report.html"))
    if out.suffix not in (".html", *_PICTURES):
        raise UserError(f"--out {shown(out)}: a name that ends in .html, or in {', '.join(_PICTURES)} for a picture")
    inputs = [path for path in (args.csv, *(run.checkpoint for run in runs)) if path]
    check_outputs([out], inputs, args.overwrite, lambda path: drawn_by(path, _PROGRAM))
    if out.suffix != ".html" and len(runs) > 1:
        raise UserError("a picture shows one run: give --out a name that ends in .html")
    source, device = Source(args.csv, args.data_path, args.audio), pick_device(args.device)
    looks = [open_look(run, source, device) for run in runs]
    if out.suffix != ".html":
        show(looks[0], out, _PROGRAM)
        return
    data = report_data(looks, args.clips, not args.no_sound)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, f"{data['title']}: training report", data, _SCRIPTS, _PROGRAM)
    for note in (note for look in looks for note in look.notes):
        print(note)
    print(f"page: {shown(out)} ({out.stat().st_size / 2**20:.1f} MB)")
    if args.open:
        webbrowser.open(out.absolute().as_uri())


if __name__ == "__main__":
    sys.exit(main())
