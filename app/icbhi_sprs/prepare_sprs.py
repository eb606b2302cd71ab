"""SPRSound (SJTU Paediatric Respiratory Sound Database): spectrograms, the list for further pre-training, the labelled events.

    python app/icbhi_sprs/prepare_sprs.py /your/SPRSound/BioCAS2022

Every recording NAME.wav has a NAME.json with its `event_annotation`: a list of events with `start` and `end` in
milliseconds and a `type`. Recordings in folders whose names hold 'train' are for training, 'test' or 'valid' for the test.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from app.segments import convert_recordings, relative_to_list, write_pretraining_list, write_segments
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program


def read_events(path: Path) -> list[tuple[float, float, str]]:
    """Start and end in seconds and type of each event of a recording; a recording of poor quality may have none."""
    try:
        events = json.loads(path.read_text())["event_annotation"]
        return [(float(event["start"]) / 1000, float(event["end"]) / 1000, str(event["type"])) for event in events]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a list 'event_annotation' of events with start, end and type ({type(error).__name__}: {error})"
        ) from error


def split_of(path: Path) -> str:
    """train or test, from the names of the folders that a file lies in (relative to the data set's folder)."""
    folders = "/".join(path.parts[:-1]).lower()
    if "train" in folders:
        return "train"
    if "test" in folders or "valid" in folders:
        return "test"
    raise ValueError(f"{path}: no folder in its path is named train or test, so its split is unknown")


def by_stem(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a suffix below a folder, by their name without it, as paths relative to the folder."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() == suffix):
        first = found.setdefault(path.stem, path.relative_to(folder))
        if first != path.relative_to(folder):
            raise ValueError(f"{folder}: {first} and {path.relative_to(folder)} have the same name: give the folder of one year")
    return found


def prepare(args: argparse.Namespace) -> None:
    """Write the spectrograms and both lists."""
    check_outputs([args.segments, args.to_list], (), args.overwrite)
    annotations, recordings = by_stem(args.folder, ".json"), by_stem(args.folder, ".wav")
    both = sorted(annotations.keys() & recordings.keys())
    if not both:
        raise FileNotFoundError(f"{args.folder}: no recording NAME.wav with a NAME.json below it")
    prefix = relative_to_list(args.lms, args.to_list)
    names = {name: recordings[name].with_suffix("").as_posix() for name in both}
    there = convert_recordings(args.folder, args.lms, names.values())
    rows, training = [], []
    for name in both:
        if names[name] not in there:
            continue
        split, file_name = split_of(annotations[name]), f"{prefix}/{names[name]}.npy"
        if split == "train" or args.pretrain_on == "all":
            training.append(file_name)
        for number, (start, end, label) in enumerate(read_events(args.folder / annotations[name])):
            rows.append((file_name, start, end, label, split, f"{name}_{number}"))
    write_segments(pd.DataFrame(rows, columns=["file_name", "start", "end", "label", "split", "unit"]), args.segments)
    write_pretraining_list(training, args.to_list)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of one year's challenge, with its wav and json folders")
    parser.add_argument("--lms", type=Path, default=Path("data/sprs_lms"), help="folder for the spectrograms")
    parser.add_argument("--to_list", type=Path, default=Path("data/files_sprs.csv"), help="the list for further pre-training")
    parser.add_argument("--segments", type=Path, default=Path("data/sprs_segments.csv"), help="the list of labelled events")
    parser.add_argument("--pretrain_on", choices=("train", "all"), default="train", help="recordings for further pre-training")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    return run_program(lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
