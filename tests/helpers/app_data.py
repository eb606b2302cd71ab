"""Small made-up data sets in the layouts of ICBHI 2017 and CirCor, for the tests of app/."""

from pathlib import Path

import numpy as np
import pandas as pd
import soundfile

from app.circor import prepare_circor
from app.icbhi_sprs import prepare_icbhi

KINDS = ("normal", "crackle", "wheeze", "both")
FLAGS = {"normal": "0\t0", "crackle": "1\t0", "wheeze": "0\t1", "both": "1\t1"}


def sound(kind: str, seconds: float, rate: int, seed: int) -> np.ndarray:
    """Breath-like noise, with clicks (crackle), a tone (wheeze), or both."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    wave = 0.02 * rng.standard_normal(len(t))
    if kind in ("crackle", "both"):
        wave[:: rate // 25] += 0.8
    if kind in ("wheeze", "both"):
        wave += 0.3 * np.sin(2 * np.pi * rng.uniform(380, 420) * t)
    return wave


def write_wav(path: Path, pieces: list[np.ndarray], rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(np.concatenate(pieces), -1, 1), rate)


def write_icbhi(folder: Path) -> Path:
    """ICBHI's layout: 12 recordings of 4 cycles, one of each class; the last four recordings are the test.

    Beside the folder lies split.txt.
    """
    split = []
    for i in range(12):
        name, rate = f"{101 + i}_1b1_Al_sc_Meditron", (4000, 44100)[i % 2]
        lengths = [1.0 + 0.3 * j for j in range(4)]
        ends = np.cumsum(lengths)
        cycles = list(zip(KINDS, lengths, ends, strict=True))
        write_wav(folder / f"{name}.wav", [sound(k, s, rate, 10 * i + j) for j, (k, s, _) in enumerate(cycles)], rate)
        lines = [f"{end - s:.3f}\t{end:.3f}\t{FLAGS[k]}" for k, s, end in cycles]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
        split.append(f"{name}\t{'test' if i >= 8 else 'train'}")
    (folder / "filename_format.txt").write_text("The recordings are named after the patient\n")
    (folder.parent / "split.txt").write_text("\n".join(split) + "\n")
    return folder


def prepare_lungs(folder: Path, out: Path, *flags: str) -> int:
    """Run prepare_icbhi on what write_icbhi wrote, into out/data; returns its exit status."""
    to = ["--lms", out / "data/icbhi_lms", "--to_list", out / "data/files_icbhi2017.csv", "--segments", out / "data/segments.csv"]
    return prepare_icbhi.main([str(each) for each in [folder, "--split_file", folder.parent / "split.txt", *to, *flags]])


def prepared_lungs(folder: Path) -> Path:
    """ICBHI's layout below a folder, prepared; returns the folder of the lists."""
    assert prepare_lungs(write_icbhi(folder / "ICBHI final database"), folder) == 0
    return folder / "data"


def write_circor(folder: Path) -> Path:
    """CirCor's layout with 28 patients, and its lists below data/, of pieces of 1 s."""
    murmurs = ["Absent"] * 12 + ["Present"] * 8 + ["Unknown"] * 8
    rows = []
    for i, murmur in enumerate(murmurs):
        rows.append((str(2530 + i), "AV+PV", murmur))
        for place in ("AV", "PV")[: 1 + i % 2]:
            kind = {"Absent": "normal", "Present": "wheeze", "Unknown": "crackle"}[murmur]
            write_wav(folder / "training_data" / f"{2530 + i}_{place}.wav", [sound(kind, 1.0 + 0.7 * (i % 3), 4000, i)], 4000)
    pd.DataFrame(rows, columns=["Patient ID", "Recording locations:", "Murmur"]).to_csv(folder / "training_data.csv", index=False)
    flags = ["--lms", folder / "data/lms", "--to_folder", folder / "data", "--seconds", "1"]
    assert prepare_circor.main([str(each) for each in [folder, *flags]]) == 0
    return folder
