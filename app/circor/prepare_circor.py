"""CirCor DigiScope heart sounds: spectrograms, and for each of three splits both lists.

    python app/circor/prepare_circor.py /your/circor-heart-sound-1.0.3

The folder holds training_data.csv, a row per patient with the columns 'Patient ID' and 'Murmur' (Present, Absent or Unknown),
and training_data/ with the recordings PATIENT_LOCATION.wav. Patients are divided at random, each murmur class in
the same proportions, into training, validation and test parts, three times; no patient is in two parts of a split.
Recordings are cut into pieces of a few seconds; the pieces of all recordings of a patient are scored as one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from app.segments import convert_recordings, relative_to_list, write_pretraining_list, write_segments
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program

SHARES = {"train": 0.65, "valid": 0.10, "test": 0.25}
MURMURS = ("Absent", "Present", "Unknown")


def read_patients(path: Path) -> dict[str, str]:
    """The murmur label of each patient."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [column for column in ("Patient ID", "Murmur") if column not in table]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    odd = table[~table["Murmur"].isin(MURMURS)]
    if len(odd):
        raise ValueError(
            f"{path} row {odd.index[0] + 2}: Murmur is {odd['Murmur'].iloc[0]!r}, expected one of {', '.join(MURMURS)}"
        )
    return dict(zip(table["Patient ID"], table["Murmur"], strict=True))


def divide(patients: dict[str, str], seed: int) -> dict[str, str]:
    """train, valid or test for each patient: a random split, the same proportions in each murmur class."""
    split = {}
    for murmur in MURMURS:
        names = np.array(sorted(name for name, label in patients.items() if label == murmur))
        order = np.random.Generator(np.random.PCG64([seed, MURMURS.index(murmur)])).permutation(len(names))
        borders = np.round(np.cumsum(list(SHARES.values())) * len(names)).astype(int)
        for part, places in zip(SHARES, np.split(order, borders[:-1]), strict=True):
            split.update(dict.fromkeys(names[places].tolist(), part))
    return split


def pieces(duration: float, seconds: float) -> list[tuple[float, float]]:
    """Consecutive pieces of a recording; the last one ends with it and may overlap the one before."""
    if duration <= seconds:
        return [(0.0, duration)]
    starts = [i * seconds for i in range(int(duration // seconds))]
    if duration - (starts[-1] + seconds) > 0.1:
        starts.append(duration - seconds)
    return [(round(start, 3), round(start + seconds, 3)) for start in starts]


def prepare(args: argparse.Namespace) -> None:
    """Write the spectrograms, and the lists of each split."""
    recordings = args.folder / "training_data"
    if not (args.folder / "training_data.csv").is_file() or not recordings.is_dir():
        raise FileNotFoundError(f"{args.folder}: expected training_data.csv and a folder training_data in it")
    lists = [args.to_folder / name.format(i) for i in (1, 2, 3) for name in ("circor{}_segments.csv", "files_circor{}.csv")]
    check_outputs(lists, [args.folder / "training_data.csv"], args.overwrite)
    patients = read_patients(args.folder / "training_data.csv")
    names = [path.stem for path in recordings.glob("*.wav") if path.stem.split("_")[0] in patients]
    prefix = relative_to_list(args.lms, args.to_folder / "files_circor1.csv")
    there = convert_recordings(recordings, args.lms, names)
    cut = {name: pieces(soundfile.info(str(recordings / f"{name}.wav")).duration, args.seconds) for name in sorted(there)}
    for number in (1, 2, 3):
        split, rows = divide(patients, number), []
        for name, stretches in cut.items():
            patient = name.split("_")[0]
            rows += [(f"{prefix}/{name}.npy", *stretch, patients[patient], split[patient], patient) for stretch in stretches]
        table = pd.DataFrame(rows, columns=["file_name", "start", "end", "label", "split", "unit"])
        write_segments(table, args.to_folder / f"circor{number}_segments.csv")
        training = table["file_name"][table["split"] == "train"]
        write_pretraining_list(training, args.to_folder / f"files_circor{number}.csv")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of training_data.csv")
    parser.add_argument("--lms", type=Path, default=Path("data/circor_lms"), help="folder for the spectrograms")
    parser.add_argument("--to_folder", type=Path, default=Path("data"), help="folder for the lists")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a piece")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    return run_program(lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
