"""Loading by one worker: a plain loader, ours from .npy and .npz files, and ours from packs. Clips per second.

    python benchmarks/loading.py [--folder /tmp/loading] [--cold]

The data are random log-mels of 10 s (M2D-S: 7 s with features), from the page cache unless --cold. The plain loader is
what one writes first: numpy.load, crop, mix and normalise in __getitem__, torch's own collate. Ours reads in the worker
and leaves mixing and normalisation to the device ('prepare' says what that costs on this CPU).
The CPU time of a worker's work alone is printed too: other programs on the machine disturb it less. It leaves
out what the plain loader spends on handing batches from process to process.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m2d.cli.pack import main as pack
from m2d.data.dataset import AudioDataset, prepare
from m2d.data.loader import BatchLoader
from m2d.data.open import open_features, open_store
from m2d.data.sampler import EpochSampler
from m2d.data.speech_dataset import SpeechDataset

STATS, NOISE_STATS, RATIO = (-7.1, 4.2), (-6.0, 4.0), 0.2
FRAMES, SPEECH_FRAMES, PATCH_FRAMES = 608, 208, 4


class Plain(Dataset):
    """The baseline: one clip at a time."""

    def __init__(self, files: list[Path], noise: list[Path] | None = None):
        self.files, self.noise = files, noise

    def __len__(self) -> int:
        return len(self.files)

    def crop(self, path: Path) -> np.ndarray:
        lms = np.load(path)
        start = np.random.randint(lms.shape[-1] - FRAMES + 1)
        return lms[:, :, start : start + FRAMES]

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        clean = self.crop(self.files[i]) - STATS[0]
        if self.noise is None:
            return (torch.from_numpy(clean / STATS[1]),)
        noise = self.crop(self.noise[np.random.randint(len(self.noise))]) - NOISE_STATS[0]
        mixed = np.log(np.maximum(RATIO * np.exp(noise) + (1 - RATIO) * np.exp(clean), np.finfo(np.float32).eps))
        return torch.from_numpy(clean / STATS[1]), torch.from_numpy(mixed / STATS[1])


class PlainSpeech(Plain):
    """The baseline for M2D-S: the clip and its features."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, ...]:
        arrays = np.load(self.files[i])
        lms, features, valid = arrays["arr_0"], arrays["arr_1"], int(arrays["arr_2"])
        start = PATCH_FRAMES * np.random.randint((2 * valid - SPEECH_FRAMES) // PATCH_FRAMES + 1)
        features = features[0, start // 2 : (start + SPEECH_FRAMES) // 2].reshape(-1, PATCH_FRAMES // 2, features.shape[-1])
        clean = (lms[:, :, start : start + SPEECH_FRAMES] - STATS[0]) / STATS[1]
        return torch.from_numpy(clean), torch.from_numpy(features.mean(axis=1))


def make_data(folder: Path, clips: int, pairs: int) -> None:
    """Random clips of 10 s as .npy, of 7 s with features as .npz, their lists and packs; kept for the next time."""
    rng = np.random.default_rng(0)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for kind, count in (("npy", clips), ("npz", pairs)):
        names = [f"clips/{i:05d}.{kind}" for i in range(count)]
        for name in names:
            if (folder / name).exists():
                continue
            if kind == "npy":
                np.save(folder / name, rng.normal(-7, 4, (1, 80, 1001)).astype(np.float32))
            else:
                features = rng.normal(size=(1, 349, 768)).astype(np.float32)
                np.savez(folder / name, rng.normal(-7, 4, (1, 80, 701)).astype(np.float32), features, 349)
        csv = folder / f"{kind}.csv"
        csv.write_text("file_name\n" + "\n".join(names) + "\n")
        for dtype in ("float16", "float32"):
            out = folder / f"{kind}-{count}.{dtype}.pack"
            if pack([str(csv), "--data_path", str(folder), "--out", str(out), "--dtype", dtype]):
                raise SystemExit("packing failed")


def batches_of(data: Dataset, batch_size: int, steps: int) -> Iterator:
    """Batches by one worker; of our data sets by BatchLoader."""
    if not isinstance(data, AudioDataset):
        order = torch.utils.data.RandomSampler(data, replacement=True, num_samples=batch_size * steps)
        return iter(DataLoader(data, batch_size, sampler=order, num_workers=1))
    plan = EpochSampler(len(data), batch_size)
    keys = [batch for epoch in range(steps) for batch in plan.batches(epoch)][:steps]
    return BatchLoader(data, workers=1).batches(keys)


def clips_per_second(data: Dataset, batch_size: int, steps: int, use: Callable | None = None) -> float:
    """Rate after the first batch, which waits for the worker to start; best of 3."""
    best = 0.0
    for _ in range(3):
        batches = batches_of(data, batch_size, steps)
        next(batches)
        begin = time.perf_counter()
        for batch in batches:
            if use is not None:
                use(batch)
        best = max(best, batch_size * (steps - 1) / (time.perf_counter() - begin))
    return best


def worker_milliseconds(data: Dataset, batch_size: int, steps: int) -> float:
    """CPU time per clip of what a worker does; best of 3."""
    order = list(torch.utils.data.RandomSampler(data, replacement=True, num_samples=batch_size * steps))
    plan = EpochSampler(len(data), batch_size)
    keys = [batch for epoch in range(steps) for batch in plan.batches(epoch)][:steps]
    times = []
    for _ in range(3):
        begin = time.process_time()
        for step in range(steps):
            if isinstance(data, AudioDataset):
                data.__getitems__(keys[step])
            else:
                default_collate([data[i] for i in order[step * batch_size : (step + 1) * batch_size]])
        times.append(1000 * (time.process_time() - begin) / (batch_size * steps))
    return min(times)


def prepare_rate(data: AudioDataset, batch_size: int) -> float:
    """Clips per second of mixing and normalising a loaded batch."""
    (keys,) = [batch for _, batch in zip(range(1), EpochSampler(len(data), batch_size).batches(0), strict=False)]
    batch = data.__getitems__(keys)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        prepare(batch.clean, batch.noise, STATS, NOISE_STATS, RATIO)
        times.append(time.perf_counter() - begin)
    return batch_size / min(times)


def table(folder: Path, clips: int, pairs: int, batch_size: int, steps: int) -> None:
    """Print every loader's rate and its ratio to the plain one."""
    npy, npz = sorted(folder.glob("clips/*.npy"))[:clips], sorted(folder.glob("clips/*.npz"))[:pairs]
    stores = {name: open_store(folder / path, folder) for name, path in ours(clips, "npy").items()}
    speech = {name: open_features(folder / path, folder, patch_frames=PATCH_FRAMES) for name, path in ours(pairs, "npz").items()}
    rows = {
        f"80x{FRAMES}": (Plain(npy), {name: AudioDataset(store, FRAMES, 0) for name, store in stores.items()}),
        f"80x{FRAMES} with noise": (
            Plain(npy, npy),
            {name: AudioDataset(store, FRAMES, 0, noise=store) for name, store in stores.items()},
        ),
        f"M2D-S 80x{SPEECH_FRAMES}": (PlainSpeech(npz), {n: SpeechDataset(s, SPEECH_FRAMES, 0) for n, s in speech.items()}),
    }
    for title, (plain, mine) in rows.items():
        base, base_cpu = clips_per_second(plain, batch_size, steps), worker_milliseconds(plain, batch_size, steps)
        print(f"{title:24s} {'plain':14s} {base:8.0f} clips/s  {'':6s} {base_cpu:6.3f} CPU ms/clip")
        for name, data in mine.items():
            rate, cpu = clips_per_second(data, batch_size, steps), worker_milliseconds(data, batch_size, steps)
            print(f"{'':24s} {name:14s} {rate:8.0f} clips/s  {rate / base:5.1f}x {cpu:6.3f} CPU ms/clip", end="")
            print(f"  {base_cpu / cpu:5.1f}x   prepare {prepare_rate(data, batch_size):8.0f}")


def ours(count: int, kind: str) -> dict[str, str]:
    """Our lists of one kind of file."""
    return {f".{kind} files": f"{kind}.csv"} | {f"{d} pack": f"{kind}-{count}.{d}.pack" for d in ("float16", "float32")}


def forget(paths: list[Path]) -> int:
    """Drop files from the page cache; returns their size in bytes."""
    os.sync()
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return sum(path.stat().st_size for path in paths)


def cold(folder: Path, clips: int, batch_size: int) -> None:
    """From a cold page cache, one worker: whole clips of a pack in random order against reading its files through."""
    for dtype in ("float16", "float32"):
        pack_folder = folder / f"npy-{clips}.{dtype}.pack"
        files = sorted(pack_folder.glob("*.frames.npy"))
        size = forget(files)
        begin = time.perf_counter()
        for path in files:
            with path.open("rb", buffering=0) as data:
                while data.read(1 << 22):
                    pass
        through = size / (time.perf_counter() - begin)
        for title, frames in (("whole clips", 1001), (f"crops of {FRAMES} frames", FRAMES)):
            forget(files)
            data = AudioDataset(open_store(pack_folder, folder), frames, 0)
            begin, done = time.perf_counter(), 0
            for batch in batches_of(data, batch_size, len(data) // batch_size):
                done += batch.clean.nbytes
            rate = done / (time.perf_counter() - begin)
            print(f"cold, {dtype}: {title} {rate / 1e6:.0f} MB/s, read through {through / 1e6:.0f} MB/s: {rate / through:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "m2d-loading", help="where the data go")
    parser.add_argument("--clips", type=int, default=2000, help="clips of 10 s (0.3 MB each, and as much for the packs)")
    parser.add_argument("--pairs", type=int, default=500, help="clips of 7 s with features (1.3 MB each)")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=12, help="batches per measurement")
    parser.add_argument("--cold", action="store_true", help="measure packs from a cold page cache instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    make_data(args.folder, args.clips, args.pairs)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, numpy {np.__version__}"
    )
    if args.cold:
        cold(args.folder, args.clips, args.batch_size)
    else:
        table(args.folder, args.clips, args.pairs, args.batch_size, args.steps)


if __name__ == "__main__":
    main()
