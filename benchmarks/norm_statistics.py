"""Mean and deviation of 5,000 crops: seconds, and memory above what the process has before, list and pack.

    python benchmarks/norm_statistics.py [--folder /tmp/m2d-statistics]

Random log-mels of 10 s, crops of 608 frames. 'measured' reads 5,000 clips, 'cached' finds the figures that a run before
kept beside the list. The plain way gathers all crops and takes their mean and deviation. Each runs in a process of its
own; files come from the page cache. Needs Linux.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from m2d.cli.pack import main as pack_lms
from m2d.data.norm_stats import cached_stats, measure_stats
from m2d.data.open import open_store

CLIPS, FRAMES = 5000, 608


def plain(path: Path, folder: Path) -> tuple[float, float]:
    """All crops at once, the obvious way."""
    names = path.read_text().split()[1:]
    crops = []
    for name in names:
        lms = np.load(folder / name)
        start = np.random.randint(lms.shape[-1] - FRAMES + 1)
        crops.append(lms[:, :, start : start + FRAMES])
    crops = np.stack(crops)
    return float(crops.mean()), float(crops.std())


WAYS = {
    "plain": plain,
    "measured": lambda path, folder: measure_stats(open_store(path, folder), FRAMES),
    "cached": lambda path, folder: cached_stats(open_store(path, folder), FRAMES),
}


def make_data(folder: Path) -> dict[str, Path]:
    """Clips, their list and a pack; 1.6 GB + 0.8 GB, kept for the next time."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    block = rng.normal(-7, 4, (80, 4000)).astype(np.float32)
    names = [f"clips/{i:04d}.npy" for i in range(CLIPS)]
    for name in names:
        if not (folder / name).exists():
            start = rng.integers(3000)
            np.save(folder / name, block[None, :, start : start + 1001])
    csv, pack = folder / "list.csv", folder / "list.pack"
    csv.write_text("\n".join(["file_name", *names]) + "\n")
    if pack_lms([str(csv), "--data_path", str(folder), "--out", str(pack)]):
        raise SystemExit("packing failed")
    return {"list": csv, "pack": pack}


def report(way: str, path: Path, folder: Path) -> None:
    """In a process of its own: print seconds, CPU seconds, peak memory above the start in MB, and the figures."""
    WAYS["measured"](*warm_up(folder))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = memory("VmRSS")
    begin, cpu = time.perf_counter(), time.process_time()
    mean, std = WAYS[way](path, folder)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    above = memory("VmHWM") - before
    print(f"{seconds:7.2f} s {cpu:7.2f} s CPU {above:8.0f} MB above {before:.0f}    mean {mean:.4f} std {std:.4f}")


def memory(what: str) -> float:
    """Resident memory of this process in MB: VmRSS now, VmHWM at its peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


def warm_up(folder: Path) -> tuple[Path, Path]:
    """A list of one clip: what the first use of a module costs belongs to the process."""
    path = folder / "one.csv"
    path.write_text("file_name\nclips/0000.npy\n")
    return path, folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "m2d-statistics", help="where the data go")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        report(args.way, args.list, args.folder)
        return
    for kind, path in make_data(args.folder).items():
        path.with_name(path.name + ".stats.json").unlink(missing_ok=True)
        for title, way in (("plain", "plain"), ("measured", "measured"), ("first run", "cached"), ("cached", "cached")):
            if kind == "pack" and way == "plain":
                continue
            print(f"{kind} {title:10s}", end="", flush=True)
            command = [sys.executable, __file__, "--way", way, "--list", str(path), "--folder", str(args.folder)]
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
