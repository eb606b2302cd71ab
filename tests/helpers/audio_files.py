"""Audio files for the tests of reading and converting, good and bad, and what a conversion left."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

from m2d.utils.atomic_file import is_temporary

ROOT = Path(__file__).resolve().parents[2]


def sound(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    noise = np.random.RandomState(seed).uniform(-0.3, 0.3, (samples, channels)).astype(np.float32)
    return noise[:, 0] if channels == 1 else noise


def write(path: Path, samples: int = 1600, rate: int = 16000, channels: int = 1, seed: int = 0, **options: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound(samples, channels, seed), rate, **options)
    return path


def targets(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")}


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if is_temporary(path)]


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.wav"
    flac = write(folder / "good.flac").read_bytes()
    content = {"empty": b"", "text": b"not audio " * 50, "torn flac": flac[: len(flac) // 2]}
    if kind == "no samples":
        soundfile.write(path, np.zeros(0), 16000)
    elif kind == "folder":
        path.mkdir()
    elif kind in content:
        path.write_bytes(content[kind])
    return path


def program(*args: object, **options) -> subprocess.CompletedProcess:
    """A run of wav_to_lms.py as a program."""
    command = [sys.executable, ROOT / "wav_to_lms.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
