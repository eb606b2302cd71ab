"""The atomic writer beside the least that a safe save takes, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.saving --folder /tmp

'checkpoint': a training state by `save_atomically`, beside torch.save into a file of a fixed name that is flushed and
renamed, as its folder is. 'spectrograms': clips by the converter's `npy_sink`, beside writing header and values into a
file named by host and process and renaming it. The two take turns; times are the 10th percentiles over the rounds, and
the ratio is that of other / ours: 1 is as fast, above 1 faster.
"""

import argparse
import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy_format

from m2d.audio.convert import npy_sink
from m2d.checkpoint.file import save_atomically

CLIPS = 30


def plain_save(state: dict, path: Path) -> None:
    """torch.save, flushed and renamed, and its folder flushed."""
    temporary = path.with_name("temporary")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def plain_npy(path: str, lms: np.ndarray) -> None:
    """A .npy file in a folder that may have to be made, renamed."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = os.path.join(os.path.dirname(path), f".{socket.gethostname()}-{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(lms[None]))
        file.write(lms.data)
    os.replace(temporary, path)


def seconds(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def compare(name: str, ours: Callable[[], object], other: Callable[[], object], rounds: int) -> None:
    """Print how long both take, undisturbed, and the ratio."""
    pairs = []
    for number in range(rounds + 1):  # the first warms up
        order = (ours, other) if number % 2 else (other, ours)
        first, second = (seconds(work) for work in order)
        pairs.append((first, second) if number % 2 else (second, first))
    mine, theirs = np.quantile(np.array(pairs[1:]), 0.1, axis=0)
    print(f"{name:<14}{1000 * mine:>10.2f}{1000 * theirs:>10.2f}{theirs / mine:>8.2f}")


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a folder on the disk to write to; none: the temporary one")
    parser.add_argument("--megabytes", type=int, default=200, help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    state = {"model": {f"blocks.{i}.weight": torch.randn(250_000) for i in range(args.megabytes)}}
    lms = np.random.default_rng(0).standard_normal((80, 1001), np.float32)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "checkpoint.pth"
        names = [os.path.join(folder, f"{i:04d}.npy") for i in range(CLIPS)]
        print(f"{'':<14}{'ours':>10}{'plain':>10}{'ratio':>8}   (ms, 10th percentile)")
        compare("checkpoint", lambda: save_atomically(state, path), lambda: plain_save(state, path), args.rounds)
        compare(
            "spectrograms",
            lambda: [npy_sink(name, lms) for name in names],
            lambda: [plain_npy(name, lms) for name in names],
            10 * args.rounds,
        )


if __name__ == "__main__":
    main()
