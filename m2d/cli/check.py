"""Check the clips of a list: files that are missing, cut short, of another shape or scale, NaN, silence, clips listed twice.

    m2d check data/files_audioset.csv --data_path data
    m2d check data/files_audioset.csv --data_path data --out data/files_clean.csv

Prints a table and statistics, and writes beside the list: `<list>.problems.csv`, a line per problem, and
`<list>.durations.png`, a histogram of durations. --out writes the list without the clips that cannot or should not be
learned from (short ones stay: training pads them). A check that was stopped resumes where it was when it is started again.
Of a pack, in a folder or at an address, every clip is compared with its checksum (as m2d pack --verify does).
Exit status: 0 nothing to fix (short clips at most), 1 problems, 2 the check itself could not be done.
"""

import argparse
import csv
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..data.clip_check import CheckState, Problem, examine, find_troubles, look_at
from ..data.clip_list import ClipList, read_list
from ..data.feature_store import NpzStore
from ..data.file_store import FileStore, NpyStore
from ..data.norm_stats import drawn_clips
from ..data.pack.format import is_pack
from ..utils.addresses import is_address
from ..utils.atomic_file import open_atomic, write_csv, write_figure
from ..utils.errors import UserError
from ..utils.names import shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by, has_header
from ..utils.parallel import usable_cores
from ..utils.program import ArgumentParser, run_program
from .pack import run_verify

FRAME_SECONDS = 0.01
_COLUMNS = ("row", "file_name", "problem", "detail")  # of the table of problems
_PROGRAM = "m2d check"
WORDS = {
    Problem.MISSING: "missing",
    Problem.UNREADABLE: "cannot be read",
    Problem.TRUNCATED: "cut short",
    Problem.WRONG_SHAPE: "wrong shape or mel bands",
    Problem.NOT_FINITE: "NaN or infinite values",
    Problem.BEYOND_FULL_SCALE: "beyond full scale",
    Problem.SILENT: "silent",
    Problem.SHORT: "shorter than the input",
    Problem.LISTED_TWICE: "listed before",
    Problem.SAME_CONTENT: "same content as another",
}
#: Nothing to fix: training pads these.
NOTES = (Problem.SHORT,)
_BINS = 60

logger = logging.getLogger("m2d")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("csv", help="the list, a CSV with a column file_name; or a pack, a folder or an address")
    parser.add_argument("--data_path", default="data", help="folder that the file names are relative to")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="look at N clips, evenly spread; 0: at all")
    parser.add_argument("--out", "--fix", type=Path, metavar="OUT.csv", help="write a list without the bad clips")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--input_frames", type=int, default=608, help="frames of the model's input")
    parser.add_argument("--n_mels", type=int, default=80, help="mel bands of the model's input")
    parser.add_argument("--workers", type=int, default=min(16, 2 * usable_cores()), help="threads that read")
    args = parser.parse_args(argv)
    if args.workers < 1 or args.sample < 0:
        parser.error("--workers is at least 1, --sample not below 0")
    if args.out and args.out.suffix != ".csv":
        parser.error(f"--out {args.out}: expected a name that ends in .csv")
    args.is_pack = is_address(args.csv) or is_pack(args.csv)
    if args.is_pack and (args.out or args.sample):
        parser.error(f"{shown(args.csv)} is a pack: --out and --sample are for lists")
    return args


def open_list(args: argparse.Namespace) -> tuple[ClipList, FileStore]:
    """The list in its own order, and its files."""
    clips = read_list(args.csv)
    broken = sum("\n" in name for name in clips.names)
    if broken:
        logger.warning("%d names hold line breaks: an open quote in the list makes one name of several rows", broken)
    kind = NpzStore if clips.names[0].endswith(".npz") else NpyStore
    return clips, kind(clips, args.data_path, args.n_mels)


def in_words(store: FileStore, trouble: np.void, record: np.void, input_frames: int) -> str:
    """What is wrong with a clip, in detail; the file is read again for what the record does not say."""
    problem = Problem(int(trouble["problem"]))
    if problem in (Problem.LISTED_TWICE, Problem.SAME_CONTENT):
        return f"as {store.where(int(trouble['other']))}"
    if problem == Problem.SHORT:
        return f"{record['frames']} frames, an input has {input_frames}"
    if problem == Problem.SILENT:
        return f"no value above {record['high']:.2f}"
    return examine(store, int(trouble["clip"]), input_frames)[1]


def beside(path: Path, ending: str) -> Path:
    """A file beside the list."""
    return path.with_name(f"{path.name}.{ending}")


def write_problems(path: Path, store: FileStore, records: np.ndarray, troubles: np.ndarray, input_frames: int) -> None:
    """One line per problem: row, file_name, problem, detail."""

    def row(trouble: np.void) -> tuple[object, ...]:
        i = int(trouble["clip"])
        detail = in_words(store, trouble, records[i], input_frames)
        return store.clip_list.rows[i], store.name(i), WORDS[Problem(int(trouble["problem"]))], detail

    write_csv(path, _COLUMNS, map(row, troubles))


def write_fixed(clips: ClipList, out: Path, dropped: set[int]) -> int:
    """Write the list without some of its clips, the other rows as they are; returns how many clips are left.

    Raises:
        UserError: a row, found again in the file, does not name the clip that was read from it.
    """
    left = 0
    with clips.source.open(newline="", encoding="utf-8") as old, open_atomic(out) as new:
        records = _records(old)
        header, columns = next(records)
        new.write(header.encode())
        column = [name.removeprefix("\ufeff") for name in columns].index("file_name")
        wanted = zip(range(len(clips)), clips.rows, clips.names, strict=True)
        for row, (text, fields) in enumerate(records, start=2):
            if any(fields):
                clip, its_row, name = next(wanted, (-1, 0, ""))
                if (its_row, name) != (row, fields[column] if column < len(fields) else None):
                    raise UserError(f"{clips.source} row {row} can be read in two ways: fix its quotes. {out} is not written")
                if clip in dropped:
                    continue
                left += 1
            new.write(text.encode())
        if next(wanted, None) is not None:
            raise UserError(f"{clips.source}: its last rows can be read in two ways: fix their quotes. {out} is not written")
    return left


def _records(file: TextIO) -> Iterator[tuple[str, list[str]]]:
    """The records of a CSV as they stand in it, line ends within quotes included, and their fields."""
    lines: list[str] = []

    def remembered() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line

    for fields in csv.reader(remembered()):
        yield "".join(lines), fields
        lines.clear()


def is_own_report(path: Path) -> bool:
    """Whether an earlier check wrote this table of problems, or this picture."""
    return has_header(path, _COLUMNS) or drawn_by(path, _PROGRAM)


def draw_durations(path: Path, seconds: np.ndarray, input_seconds: float) -> None:
    """A histogram of durations, with a line at the length of the model's input."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    ends = min(seconds.min(), input_seconds) / 1.1, max(seconds.max(), input_seconds) * 1.1
    axis.hist(seconds, bins=np.geomspace(*ends, _BINS + 1))
    axis.axvline(input_seconds, color="#c0392b", label=f"the model's input, {input_seconds:g} s")
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False)
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("duration (s)")
    axis.set_ylabel("clips")
    axis.set_title(f"{path.name.split('.durations')[0]}: {len(seconds):,} clips, {seconds.sum() / 3600:,.1f} hours")
    write_figure(path, figure, _PROGRAM)


def report(store: FileStore, records: np.ndarray, troubles: np.ndarray) -> str:
    """The table and the statistics."""
    seen = records["looked_at"] == 1
    sound = seen & (records["values"] > 0) & np.isfinite(records["sum"])
    lines = [f"{store.source}: {len(records):,} clips listed, {int(seen.sum()):,} looked at"]
    if sound.any():
        values, frames = records["values"][sound].sum(), records["frames"][sound]
        mean = records["sum"][sound].sum() / values
        std = np.sqrt(max(records["squares"][sound].sum() / values - mean**2, 0))
        low, high = records["low"][sound].min(), records["high"][sound].max()
        lines.append(f"{frames.sum() * FRAME_SECONDS / 3600:,.2f} hours; {frames.min()} to {frames.max()} frames a clip")
        lines.append(f"values: mean {mean:.4f}, standard deviation {std:.4f}, from {low:.2f} to {high:.2f}")
    if not len(troubles):
        return "\n".join([*lines, "no problems"])
    lines.append(f"{'problem':<26}{'clips':>9}  {'--out':<8}the first")
    for problem, words in WORDS.items():
        found = troubles["clip"][troubles["problem"] == problem]
        if len(found):
            kept = "keeps" if problem in NOTES else "drops"
            lines.append(f"{words:<26}{len(found):>9,}  {kept:<8}{store.where(int(found[0]))}")
    return "\n".join(lines)


def refuse_wrong_folder(store: FileStore) -> None:
    """Raise FileNotFoundError where not one of a hundred files, evenly spread over the list, is there."""
    if not any(os.path.exists(store.path(int(i))) for i in drawn_clips(store, 100)):
        raise FileNotFoundError(
            f"{store.source}: none of its files is under {store.data_path} (--data_path), such as {store.name(0)}"
        )


def check(args: argparse.Namespace) -> int:
    """Look at a list; returns the exit status."""
    args.csv = Path(args.csv)
    problems, durations = beside(args.csv, "problems.csv"), beside(args.csv, "durations.png")
    check_outputs([problems, durations], [args.csv], args.overwrite, is_own_report)
    check_outputs([args.out] if args.out else [], [args.csv], args.overwrite)
    clips, store = open_list(args)
    refuse_wrong_folder(store)
    identity = f"{clips.digest()} {Path(args.data_path).resolve()} {args.n_mels} {args.input_frames}"
    state = CheckState(beside(args.csv, "check.npz"), identity, len(clips))
    records = state.records
    look_at(store, drawn_clips(store, args.sample or len(clips)), state, args.input_frames, args.workers)
    troubles = find_troubles(clips, records)
    print(report(store, records, troubles))
    write_problems(problems, store, records, troubles, args.input_frames)
    written = [problems]
    if (records["frames"] > 0).any():
        seconds = records["frames"][records["frames"] > 0] * FRAME_SECONDS
        draw_durations(durations, seconds, args.input_frames * FRAME_SECONDS)
        written.append(durations)
    print(f"written: {', '.join(map(str, written))}")
    bad = set(troubles["clip"][~np.isin(troubles["problem"], NOTES)].tolist())
    if args.out:
        left = write_fixed(clips, args.out, bad)
        print(f"{args.out}: {left:,} clips, {len(bad):,} dropped")
    state.remove()
    return 1 if bad else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    if args.is_pack:
        return run_program(lambda: run_verify(args.csv, args.workers))
    return run_program(lambda: check(args), interrupted="interrupted: the same command continues where it stopped")


if __name__ == "__main__":
    sys.exit(main())
