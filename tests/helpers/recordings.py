"""Sounds for embedding and tagging, and the programs run on them as commands."""

import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def melody(seconds, rate):
    """A tone that rises, with harmonics, in a little noise."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * (300 * t + 40 * t**2)
    noise = np.random.RandomState(0).standard_normal(len(t))
    return (0.2 * np.sin(phase) + 0.1 * np.sin(2 * phase) + 0.003 * noise).astype(np.float32)


def run_module(name, *arguments, **options):
    """Run `python -m m2d.NAME ARGUMENTS`."""
    command = [sys.executable, "-m", f"m2d.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, **{"text": True, **options})
