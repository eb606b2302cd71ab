"""ICBHI 2017 (Respiratory Sound Database): spectrograms, the list for further pre-training, and the labelled cycles.

    python app/icbhi_sprs/prepare_icbhi.py /your/ICBHI_final_database --split_file /your/ICBHI_challenge_train_test.txt

Every recording NAME.wav has a NAME.txt with a line per respiratory cycle: start and end in seconds, and whether crackles
and wheezes are heard in it (0 or 1). The split file has a line per recording: its name, and train or test.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from app.segments import convert_recordings, relative_to_list, write_pretraining_list, write_segments
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program

LABELS = {("0", "0"): "normal", ("1", "0"): "crackle", ("0", "1"): "wheeze", ("1", "1"): "both"}


def read_split(path: Path) -> dict[str, str]:
    """The official split: train or test for each recording's name."""
    split = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or parts[1] not in ("train", "test"):
            raise ValueError(f"{path} line {number}: {line!r}, expected a recording's name and train or test")
        split[parts[0]] = parts[1]
    return split


def read_cycles(path: Path) -> list[tuple[float, float, str]]:
    """Start and end in seconds and label of each cycle of a recording."""
    cycles = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            start, end, label = float(parts[0]), float(parts[1]), LABELS[parts[2], parts[3]]
        except (IndexError, KeyError, ValueError):
            start, end, label = 0.0, 0.0, ""
        if not start < end:
            raise ValueError(f"{path} line {number}: {line!r}, expected start, end, crackles (0 or 1), wheezes (0 or 1)")
        cycles.append((start, end, label))
    return cycles


def cycles_table(recordings: Path, split: dict[str, str], there: set[str], prefix: str) -> pd.DataFrame:
    """A row per cycle of the recordings that there are spectrograms of."""
    rows = []
    for name in sorted(there):
        for number, (start, end, label) in enumerate(read_cycles(recordings / f"{name}.txt")):
            rows.append((f"{prefix}/{name}.npy", start, end, label, split[name], f"{name}_{number}"))
    return pd.DataFrame(rows, columns=["file_name", "start", "end", "label", "split", "unit"])


def prepare(args: argparse.Namespace) -> None:
    """Write the spectrograms and both lists."""
    check_outputs([args.segments, args.to_list], [args.split_file], args.overwrite)
    if not args.split_file.is_file():
        raise FileNotFoundError(
            f"{args.split_file}: no such file. Name the official split (train or test per recording) by --split_file"
        )
    split = read_split(args.split_file)
    annotated = {path.stem for path in args.recordings.glob("*.txt")} & set(split)
    if not annotated:
        raise FileNotFoundError(f"{args.recordings}: none of the {len(split)} recordings of {args.split_file} has its .txt here")
    prefix = relative_to_list(args.lms, args.to_list)
    there = convert_recordings(args.recordings, args.lms, annotated)
    write_segments(cycles_table(args.recordings, split, there, prefix), args.segments)
    seen = there if args.pretrain_on == "all" else {name for name in there if split[name] == "train"}
    write_pretraining_list((f"{prefix}/{name}.npy" for name in seen), args.to_list)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, help="the folder of the .wav and .txt files (ICBHI_final_database)")
    parser.add_argument("--split_file", type=Path, required=True, help="ICBHI_challenge_train_test.txt")
    parser.add_argument("--lms", type=Path, default=Path("data/icbhi2017_lms"), help="folder for the spectrograms")
    parser.add_argument(
        "--to_list", type=Path, default=Path("data/files_icbhi2017.csv"), help="the list for further pre-training"
    )
    parser.add_argument("--segments", type=Path, default=Path("data/icbhi2017_segments.csv"), help="the list of labelled cycles")
    parser.add_argument("--pretrain_on", choices=("train", "all"), default="train", help="recordings for further pre-training")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    return run_program(lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
