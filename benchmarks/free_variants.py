"""Variants of labelled log-mel clips to train on, as a pack: each clip as it is, and copies that sound different.

    python benchmarks/free_sound.py FREE
    python wav_to_lms.py FREE/audio FREE/lms --suffix wav --min_length None --csv FREE/lms.csv
    python benchmarks/free_variants.py FREE/labelled.csv FREE/variants.pack --data_path FREE

A copy is stretched in time, at another level, mixed with another clip and, half of them, heard through one of CHANNELS: a fixed
equaliser, bandwidth and floor of noise, whose number is one more label. So an encoder learns to tell channels apart, and what
is heard through them. Notes and what is computed are shifted along the mel bands too; voices are not, whose speakers are labels.
Some are cut to a part of a second and filled to whole patches by MEAN, as an encoder later fills the end of a short recording.

Each copy depends on the clip's place in the list, its number and the list alone. All works on the log-mel: filters add to it.
"""

import argparse
import csv
import hashlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from m2d.audio.logmel import SILENCE
from m2d.data.pack.format import PackInfo, missing_chunks
from m2d.data.pack.writer import pack_clip, start_pack, write_chunk

COLUMNS = ("file_name", "label", "weight")
CHANNELS = 32
FRAMES = 200  # of a clip, at most
CHUNK = 4096
BANDS = 80
PATCH = 16  # frames
MEAN = -10.9  # of all values, with the silence that fills short crops: --norm_stats "[-10.9,4.9]"
#: Parts whose sound has no speaker.
SHIFTED = ("fluidsynth", "opl3", "freepats", "zynaddsubfx", "stk", "numpy")


class Channel(NamedTuple):
    """What a channel adds to each band `[BANDS]`, and its floor of noise `[BANDS]`."""

    gain: np.ndarray
    floor: np.ndarray


def channel(number: int) -> Channel:
    """A smooth equaliser; the whole band, or that of a telephone or of 8 or 11 kHz; a floor that slopes."""
    rng = np.random.default_rng([4, number])
    waves = np.cos(np.pi * np.arange(1, 7)[:, None] * np.linspace(0, 1, BANDS))
    gain = rng.normal(0, 0.5, 6) @ waves
    low, high = [(0, BANDS), (0, BANDS), (0, 60), (9, 56), (0, 62), (0, 69)][number % 6]
    outside = np.maximum(low - np.arange(BANDS), np.arange(BANDS) - high + 1).clip(0)
    gain = gain - np.minimum(2.5 * outside, 14)
    floor = rng.uniform(SILENCE, -9) + rng.normal(0, 1) * np.linspace(-1, 1, BANDS) - 1.5 * np.minimum(outside, 3)
    return Channel(gain.astype(np.float32), np.maximum(floor, SILENCE).astype(np.float32))


ALL_CHANNELS = [channel(number) for number in range(CHANNELS)]


def variant(rng: np.random.Generator, clip: np.ndarray, other: np.ndarray, shifted: bool) -> tuple[np.ndarray, str]:
    """A copy of a clip `[BANDS, frames]`, and the label of its channel ("" for none).

    Args:
        rng: draws what is done.
        clip, other: log-mel; `other` may be mixed in.
        shifted: along the bands too.
    """
    clip = resampled(clip, rng.uniform(0.8, 1.25), rng.uniform(-2.5, 2.5) if shifted else 0.0)
    if rng.random() < 0.35:
        clip = mixed(clip, other, float(rng.uniform(1, 5)), rng)
    clip, label = heard(rng, clip + np.float32(rng.uniform(-1.2, 1.2)))
    clip = np.maximum(clip, np.float32(SILENCE))
    return (cut_short(rng, clip) if rng.random() < 0.25 else clip), label


def heard(rng: np.random.Generator, clip: np.ndarray) -> tuple[np.ndarray, str]:
    """Through a channel, half of the clips, and its label."""
    if rng.random() < 0.5:
        return clip, ""
    number = int(rng.integers(CHANNELS))
    gain, floor = ALL_CHANNELS[number]
    noise = floor[:, None] + np.log(rng.gamma(3, 1 / 3, clip.shape)).astype(np.float32)
    return np.logaddexp(clip + gain[:, None], noise), f"channel_{number}"


def cut_short(rng: np.random.Generator, clip: np.ndarray) -> np.ndarray:
    """At most 0.3 to 0.9 s from a place at random, filled to whole patches."""
    frames = min(int(rng.integers(30, 91)), clip.shape[1])
    begin = int(rng.integers(clip.shape[1] - frames + 1))
    return np.pad(clip[:, begin : begin + frames], ((0, 0), (0, -frames % PATCH)), constant_values=MEAN)


def resampled(clip: np.ndarray, stretch: float, shift: float) -> np.ndarray:
    """Longer by a factor, and moved up by so many bands: linear interpolation."""
    frames = max(8, round(clip.shape[1] * stretch))
    clip = interpolated(clip.T, np.linspace(0, clip.shape[1] - 1, frames)).T
    return interpolated(clip, np.arange(BANDS) - shift) if shift else clip


def interpolated(rows: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Rows at fractional places; the first and last beyond the ends."""
    places = places.clip(0, len(rows) - 1)
    below = np.minimum(places.astype(np.int64), max(len(rows) - 2, 0))
    share = (places - below).astype(np.float32)[:, None]
    return rows[below] * (1 - share) + rows[np.minimum(below + 1, len(rows) - 1)] * share


def mixed(clip: np.ndarray, other: np.ndarray, below: float, rng: np.random.Generator) -> np.ndarray:
    """With another clip, so many nats below the level of this one, from a place at random."""
    frames = clip.shape[1]
    begin = int(rng.integers(max(1, other.shape[1] - frames + 1)))
    part = other[:, begin : begin + frames]
    added = np.full_like(clip, SILENCE)
    added[:, : part.shape[1]] = part + np.float32(np.percentile(clip, 95) - np.percentile(part, 95) - below)
    return np.logaddexp(clip, added)


# ---------------------------------------------------------------- the pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("list", type=Path, metavar="CSV", help="file_name,label,weight, as free_sound.py writes it")
    parser.add_argument("pack", type=Path, metavar="PACK", help="the pack to write")
    parser.add_argument("--data_path", type=Path, required=True, help="the folder that file names start from")
    parser.add_argument("--copies", type=int, default=3, help="of each clip, beside the clip itself")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args()
    with args.list.open(newline="") as file:
        rows = list(csv.DictReader(file))
    count = len(rows) * (1 + args.copies)
    digest = hashlib.sha256(f"{args.copies} {args.list.read_bytes()!r}".encode()).hexdigest()
    info = PackInfo(digest, count, CHUNK, "float16", BANDS, 0, COLUMNS)
    start_pack(args.pack, info)
    write = partial(write_variants, args.pack, info, rows, args.data_path)
    with ProcessPoolExecutor(args.workers) as pool:
        list(pool.map(write, missing_chunks(args.pack, info)))
    print(f"{args.pack}: {count} clips")


def write_variants(pack: Path, info: PackInfo, rows: list[dict[str, str]], data_path: Path, chunk: int) -> None:
    """One chunk: clip i of the pack is copy i // len(rows) of row i % len(rows); copy 0 is the clip itself."""
    with write_chunk(pack, info, chunk) as writer:
        for i in info.clips_in(chunk):
            copy, place = divmod(i, len(rows))
            row, label = rows[place], ""
            clip = read(data_path, row)
            if copy:
                rng = np.random.default_rng([3, place, copy])
                other = read(data_path, rows[rng.integers(len(rows))])
                clip, label = variant(rng, clip, other, Path(row["file_name"]).parts[1].startswith(SHIFTED))
            labels = ",".join(filter(None, (row["label"], label)))
            writer.add(pack_clip(clip, info.dtype), {**row, "file_name": f"{copy}/{row['file_name']}", "label": labels})


def read(data_path: Path, row: dict[str, str]) -> np.ndarray:
    return np.load(data_path / row["file_name"])[0, :, :FRAMES].astype(np.float32)


if __name__ == "__main__":
    main()
