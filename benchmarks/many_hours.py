"""Start of training on a corpus that no disk here holds: packs of millions of clips of minutes, which are sparse files.

    python benchmarks/many_hours.py [--clips 10000000] [--minutes 6] [--packs 4]

The packs' indices are whole (names, lengths, checksums), and their frames are holes of the right size, which read as zeros: 50
million clips of 6 minutes are 5 million hours, 288 TB as float16. Told are seconds of CPU and on the clock, and the process's
memory, after each thing that a rank does before its first batch: opening the packs, the order of an epoch, the batch. Needs
a file system with sparse files, some 45 bytes a clip on the disk, and some 100 bytes a clip of memory.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from m2d.data.dataset import AudioDataset  # noqa: E402
from m2d.data.open import open_store  # noqa: E402
from m2d.data.pack.format import HEADER_BYTES, PackInfo, array_header, chunk_path, default_chunk_clips, info_path  # noqa: E402
from m2d.data.sampler import EpochSampler  # noqa: E402
from m2d.utils.atomic_file import write_npz, write_text  # noqa: E402

MELS, FRAMES_A_MINUTE, NAME = 80, 6000, 20


def make_pack(folder: Path, number: int, clips: int, frames: int) -> None:
    """A pack of `clips` clips of `frames` frames, as sparse files."""
    folder.mkdir()
    info = PackInfo("simulated", clips, default_chunk_clips(clips), "float16", MELS, 0, ("file_name",))
    write_text(info_path(folder), info.to_json())
    for chunk in range(info.chunks):
        items = info.clips_in(chunk)
        rows = len(items) * frames
        with chunk_path(folder, chunk, "frames.npy").open("wb") as file:
            file.write(array_header((rows, MELS), info.dtype))
            file.truncate(HEADER_BYTES + rows * MELS * 2)
        names = np.frombuffer("".join(f"{number:03d}/{i:012d}.npy" for i in items).encode(), np.uint8)
        index = {"file_name.blob": names, "file_name.offsets": np.arange(len(items) + 1, dtype=np.int64) * NAME}
        lengths = np.full(len(items), frames, np.int64)
        write_npz(chunk_path(folder, chunk, "index.npz"), lengths=lengths, crc=np.zeros(len(items), np.uint32), **index)


def memory(what: str) -> float:
    """Memory of this process in MB: VmRSS now, VmHWM at its peak."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


class Report:
    """A line for each thing done: what it took, and the memory after it."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()
        print("| | s of CPU | s | memory then, MB | at most, MB |")

    def line(self, title: str) -> None:
        clock, cpu = time.perf_counter(), time.process_time()
        took = f"{cpu - self._cpu:.1f} | {clock - self._clock:.1f}"
        print(f"| {title} | {took} | {memory('VmRSS'):.0f} | {memory('VmHWM'):.0f} |", flush=True)
        self._clock, self._cpu = clock, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000_000, help="of all packs together")
    parser.add_argument("--minutes", type=int, default=6, help="of a clip")
    parser.add_argument("--packs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--folder", help="where the packs go for the time of the run (the system's temporary folder)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        packs = [Path(folder, f"{number:03d}.pack") for number in range(args.packs)]
        for number, pack in enumerate(packs):
            make_pack(pack, number, args.clips // args.packs, args.minutes * FRAMES_A_MINUTE)
        sizes = [path.stat() for pack in packs for path in pack.iterdir()]
        size, used = sum(each.st_size for each in sizes) / 1e12, sum(each.st_blocks for each in sizes) * 512 / 1e9
        hours = args.clips * args.minutes / 60
        print(
            f"{args.clips:,} clips of {args.minutes} min, {hours:,.0f} h: {size:.1f} TB, of which {used:.1f} GB are on the disk"
        )
        report = Report()
        store = open_store(",".join(map(os.fspath, packs)), folder)
        report.line("opening the packs")
        data = AudioDataset(store, 608, seed=0)
        sampler = EpochSampler(len(data), args.batch_size, seed=0)
        batches = sampler.batches(0)
        keys = next(batches)
        report.line("the order of an epoch")
        data.__getitems__(keys)
        report.line(f"the first batch of {args.batch_size}")
        for _ in range(10):
            data.__getitems__(next(batches))
        report.line("ten more")


if __name__ == "__main__":
    main()
