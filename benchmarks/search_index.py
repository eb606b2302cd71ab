"""Seconds to search an index of sounds for a text: float16 vectors, mapped from the disk.

    python benchmarks/search_index.py --rows 1000000 --width 768

writes an index of random unit vectors, and searches it in a fresh state of the process, its pages in the page cache (run it once
more for that), with one query and with ten. CPU seconds count what the search itself computed, whatever else runs.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def write_index(path: Path, rows: int, width: int) -> None:
    """An index as `m2d embed --clap` writes it, of random vectors."""
    generator = np.random.default_rng(0)
    vectors = np.empty((rows, width), np.float16)
    for start in range(0, rows, 10_000):
        block = generator.standard_normal((min(10_000, rows - start), width), np.float32)
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    files = np.char.add("recordings/sound-", np.arange(rows).astype(str))
    np.savez(path, files=files, clap=np.array("random"), embeddings=vectors)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    from m2d.evaluation.sound_index import SoundIndex

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npz"
        write_index(path, args.rows, args.width)
        print(f"{args.rows} x {args.width}, {path.stat().st_size / 1e9:.2f} GB, {args.threads} threads")
        for queries in (1, 10):
            seconds, computed = [], []
            for _ in range(args.repeat):
                began, used = time.perf_counter(), time.process_time()
                index = SoundIndex(path)
                index.nearest(torch.randn(queries, args.width), 10)
                seconds.append(time.perf_counter() - began)
                computed.append(time.process_time() - used)
            took = f"median {median(seconds):.2f} s ({median(computed):.2f} s of CPU), first {seconds[0]:.2f} s"
            print(f"{queries:3} queries: {took}", flush=True)


if __name__ == "__main__":
    main()
