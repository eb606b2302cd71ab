"""A training run of two epochs from a pack: clips/s and the share of waiting for data, in the first steps of an epoch and later.

    python -m benchmarks.run_from_pack --device cuda --batch_size 512 --steps 60 --bf16

The pack holds random clips that are repeated to the epoch's length, so it is read from the page cache. Flags that this program
does not have go to `m2d train`.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from m2d.cli.pack import main as pack
from m2d.train.config import as_pair, size_pair
from m2d.train.loop import LOG_STEPS

LINE = re.compile(r"epoch (\d+)/\d+  step (\d+)/\d+ .*?  (\d+) clips/s.*  data-wait (\d+)%")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The settings, and the flags of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2048, help="in the pack")
    parser.add_argument("--input_size", type=size_pair, default="80x608")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3 * LOG_STEPS, help="of an epoch")
    parser.add_argument("--device", default="cuda")
    return parser.parse_known_args()


def make_pack(folder: Path, clips: int, shape: tuple[int, int]) -> Path:
    """A float16 pack of random clips."""
    rng = np.random.default_rng(0)
    (folder / "clips").mkdir()
    names = [f"clips/{i:05d}.npy" for i in range(clips)]
    for name in names:
        np.save(folder / name, rng.normal(-7, 4, (1, *shape)).astype(np.float32))
    table = folder / "clips.csv"
    table.write_text("\n".join(["file_name", *names]) + "\n")
    if pack([str(table), "--data_path", str(folder), "--out", str(folder / "clips.pack"), "--dtype", "float16"]):
        raise SystemExit("packing failed")
    return folder / "clips.pack"


def main() -> None:
    """Run and print a row for each report of the second epoch."""
    args, more = parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_pack(folder, args.clips, as_pair(args.input_size))
        flags = dict(csv_main=data, out=folder / "run", input_size=args.input_size, batch_size=args.batch_size)
        flags |= dict(min_ds_size=args.batch_size * args.steps, device=args.device, epochs=2, warmup_epochs=1)
        flags |= dict(norm_stats="[-7,4]", feature_eval_freq=0)
        command = [sys.executable, "-m", "m2d", "train", *(f"--{key}={value}" for key, value in flags.items()), *more]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        raise SystemExit(f"m2d train ended with status {done.returncode}")
    for epoch, step, rate, waiting in LINE.findall(done.stdout):
        if epoch == "2":
            print(f"| run from a pack, epoch 2, up to step {step} | {rate} clips/s | data-wait {waiting}% |")


if __name__ == "__main__":
    main()
