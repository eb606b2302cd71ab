"""How fast audio files are decoded, mixed and resampled to 16 kHz.

    python benchmarks/decoding.py [--seconds 10] [--rounds 15] [--before OLD_MODULE.py]

One row per format: milliseconds of processor time per file, and seconds of sound per second, of m2d.audio.decode.load_audio,
beside librosa.load. --before names another module with a function load_audio(path, sample_rate), such as
an earlier version of ours, and adds its figure and the ratio (above 1: ours is faster). All take turns in one process, in one
thread, and of each ratio the median over the rounds counts, so that a busy machine disturbs them alike.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import librosa  # noqa: E402
import numpy as np  # noqa: E402
import soundfile  # noqa: E402

from m2d.audio.decode import load_audio  # noqa: E402

SAMPLE_RATE = 16000
FORMATS = {
    "WAV 16 kHz, mono": ("a.wav", 16000, 1, {"subtype": "PCM_16"}),
    "WAV 44.1 kHz, stereo": ("b.wav", 44100, 2, {"subtype": "PCM_16"}),
    "WAV 48 kHz, 24 bits, stereo": ("c.wav", 48000, 2, {"subtype": "PCM_24"}),
    "WAV 44.1 kHz, float, stereo": ("d.wav", 44100, 2, {"subtype": "FLOAT"}),
    "FLAC 44.1 kHz, stereo": ("e.flac", 44100, 2, {}),
    "FLAC 16 kHz, mono": ("f.flac", 16000, 1, {}),
    "MP3 44.1 kHz, stereo": ("g.mp3", 44100, 2, {"bitrate_mode": "CONSTANT"}),
    "MP3 44.1 kHz, variable rate": ("h.mp3", 44100, 2, {"bitrate_mode": "VARIABLE"}),
    "Ogg Vorbis 44.1 kHz, stereo": ("i.ogg", 44100, 2, {}),
    "Opus 48 kHz, stereo": ("j.opus", 48000, 2, {"format": "OGG", "subtype": "OPUS"}),
}


def sound(seconds: float, rate: int, channels: int) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    voice = 0.3 * np.sin(2 * np.pi * (200 * t + 40 * np.sin(t)))
    noise = 0.02 * np.random.default_rng(0).standard_normal((len(t), channels))
    return (voice[:, None] + noise).astype(np.float32)


def module(path: Path) -> Callable[[Path, int], np.ndarray]:
    spec = importlib.util.spec_from_file_location("before", path)
    before = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(before)
    return before.load_audio


def milliseconds(load: Callable[[Path, int], np.ndarray], path: Path, files: int) -> float:
    begin = time.process_time()
    for _ in range(files):
        load(path, SAMPLE_RATE)
    return 1000 * (time.process_time() - begin) / files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="length of a file (default 10)")
    parser.add_argument("--rounds", type=int, default=15, help="default 15")
    parser.add_argument("--before", type=Path, help="a module with another load_audio")
    args = parser.parse_args()
    ways = {"ours": load_audio, "librosa": lambda path, rate: librosa.load(path, sr=rate)}
    if args.before:
        ways["before"] = module(args.before)
    others = [way for way in ways if way != "ours"]
    print(f"{'':30}{'ours: ms':>10}{'x real time':>13}" + "".join(f"{way + ': ms':>14}{'ratio':>8}" for way in others))
    with tempfile.TemporaryDirectory() as folder:
        for title, (name, rate, channels, options) in FORMATS.items():
            path = Path(folder, name)
            with soundfile.SoundFile(path, "w", rate, channels, **options) as file:
                for block in np.array_split(sound(args.seconds, rate, channels), max(1, int(args.seconds))):
                    file.write(block)  # libsndfile's Ogg encoders overflow the stack on long blocks
            files = max(1, int(50 / milliseconds(load_audio, path, 3)))
            times = {way: [] for way in ways}
            for _ in range(args.rounds):
                for way, load in ways.items():
                    times[way].append(milliseconds(load, path, files))
            ours = np.median(times["ours"])
            row = f"{title:30}{ours:10.2f}{1000 * args.seconds / ours:13,.0f}"
            for way in others:
                row += f"{np.median(times[way]):14.2f}{np.median(np.divide(times[way], times['ours'])):8.2f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
