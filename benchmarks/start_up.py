"""Start of a training run with millions of files listed: seconds to the first batch, and what the list costs in memory.

    python benchmarks/start_up.py [--clips 2000000] [--workers 8]

train_audio.py runs as it is (imports, list, presence of files, statistics, model, first batch of 512), on the CPU with
m2d_vit_tiny, and is stopped when the first batch is there. The same with a list of 10,000: the difference in peak memory,
over the process and all its workers, is the list's. All paths differ and lead to a file: 1,000 files in a folder, which
has a name more (a link) per thousand paths. So folders and files come from the cache of a warm disk. Needs Linux.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FILES = 1000


class FirstBatch(BaseException):
    """The run has come to its first batch."""


def make_data(folder: Path, clips: int) -> Path:
    """Write a list of `clips` paths, unsorted; returns it."""
    real = folder / "real"
    real.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    if not (real / "000.npy").exists():
        for i in range(FILES):
            np.save(real / f"{i:03d}.npy", rng.normal(-7, 4, (1, 80, 1001)).astype(np.float32))
    (folder / "audioset_lms").mkdir(exist_ok=True)
    names = [f"audioset_lms/part-{i // FILES:05d}-of-audioset/{i % FILES:03d}.npy" for i in range(clips)]
    for name in dict.fromkeys(os.path.dirname(name) for name in names):
        if not (folder / name).exists():
            (folder / name).symlink_to(real, target_is_directory=True)
    path = folder / f"files_{clips}.csv"
    path.write_text("\n".join(["file_name", *(names[i] for i in rng.permutation(clips))]) + "\n")
    path.with_name(path.name + ".stats.json").unlink(missing_ok=True)
    return path


def memory(pid: int, what: str) -> float:
    """Memory of a process in MB: VmRSS now, VmHWM at its peak."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


def run(csv: Path, folder: Path, workers: int, began: float) -> None:
    """In a process of its own: train until the first batch is there, and print what that took."""
    from m2d.train import pretrain
    from m2d.train.metrics import Throughput
    from m2d.train.programs import M2D

    def first_batch(state, data, batches, *rest):
        batch = next(batches.rest_of_epoch(Throughput(1)))
        seconds, cpu = time.time() - began, time.process_time()
        me = Path("/proc/self/task")
        children = [int(pid) for task in me.iterdir() for pid in (task / "children").read_text().split()]
        peak = memory(os.getpid(), "VmHWM") + sum(memory(pid, "VmRSS") for pid in children)
        print(
            f"{csv.name}: first batch {tuple(batch.clean.shape)} after "
            f"{seconds:.1f} s ({cpu:.1f} s CPU), {workers} workers in {len(children)} processes of their own"
        )
        print(f"first batch: peak MB {peak:.0f}")
        raise FirstBatch

    pretrain.train = first_batch
    with tempfile.TemporaryDirectory() as out:
        flags = f"--csv_main {csv} --data_path {folder} --output_dir {out}/run --model m2d_vit_tiny --device cpu"
        try:
            pretrain.main(M2D, [*flags.split(), "--num_workers", str(workers)])
        except FirstBatch:
            return
    raise SystemExit("the run ended before its first batch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "m2d-start-up", help="where the data go")
    parser.add_argument("--clips", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        run(args.list, args.folder, args.workers, args.began)
        return
    peaks = []
    for clips in (10_000, args.clips):
        csv = make_data(args.folder, clips)
        for title in ("statistics measured", "statistics kept"):
            command = [sys.executable, __file__, "--folder", str(args.folder), "--list", str(csv), "--workers", str(args.workers)]
            command += ["--began", str(time.time())]
            said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            first, peak = (line for line in said.splitlines() if "first batch" in line)
            print(f"{title}: {first}")
            peaks.append(float(peak.split()[-1]))
    print(f"peak memory {peaks[-1]:.0f} MB, with 10,000 listed {peaks[1]:.0f} MB: the list takes {peaks[-1] - peaks[1]:.0f} MB")


if __name__ == "__main__":
    main()
