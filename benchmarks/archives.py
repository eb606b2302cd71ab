"""How fast m2d convert reads tars, zip archives and parquet files, beside the same files in a folder; all in one run.

    python benchmarks/archives.py [--clips 200] [--rounds 5] [--workers 2] [--listed 100000]

Clips of 10 s at 16 kHz (16-bit WAV) lie in a folder and in an archive of each kind. The ways take turns in every round, each
converts all clips into .npy files, and ratios are medians over the rounds. CPU time, of the workers and of this process, is what
to go by: ratios of times on the clock hold on a machine without other work alone.
Listing, which comes before the first file, is measured with archives of many small members.
"""

import argparse
import io
import resource
import statistics
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import soundfile  # noqa: E402

from m2d.audio.convert import KEPT_MEMORY  # noqa: E402
from m2d.audio.sources.find import list_members  # noqa: E402
from m2d.data.convert_folder import convert_wav  # noqa: E402
from m2d.utils.malloc import keep_freed_memory  # noqa: E402

SAMPLE_RATE = 16000


def clip(number: int) -> bytes:
    """A WAV file of 10 s."""
    rng = np.random.default_rng(number)
    t = np.arange(10 * SAMPLE_RATE) / SAMPLE_RATE
    sound = 0.3 * np.sin(2 * np.pi * (200 + 30 * np.sin(3 * t)) * t) + 0.01 * rng.standard_normal(len(t))
    file = io.BytesIO()
    soundfile.write(file, sound, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))


def write_zip(path: Path, files: dict[str, bytes], method: int) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_parquet(path: Path, files: dict[str, bytes]) -> None:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": content, "path": name} for name, content in files.items()], kind)
    pq.write_table(pa.table({"audio": rows}), path, row_group_size=100)


def make_sources(folder: Path, clips: int) -> dict[str, Path]:
    """The same clips as a folder and as archives."""
    files = {f"{number:06d}.wav": clip(number) for number in range(clips)}
    (folder / "sounds").mkdir()
    for name, content in files.items():
        (folder / "sounds" / name).write_bytes(content)
    write_tar(folder / "sounds.tar", files)
    write_zip(folder / "stored.zip", files, zipfile.ZIP_STORED)
    write_zip(folder / "deflated.zip", files, zipfile.ZIP_DEFLATED)
    write_parquet(folder / "sounds.parquet", files)
    names = ("sounds", "sounds.tar", "stored.zip", "deflated.zip", "sounds.parquet")
    return dict(zip(("folder", "tar", "zip, stored", "zip, deflated", "parquet"), (folder / name for name in names), strict=True))


def cpu_seconds() -> float:
    """CPU time of this process, and of workers that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of CPU."""
    begin, cpu = time.perf_counter(), cpu_seconds()
    work()
    return time.perf_counter() - begin, cpu_seconds() - cpu


def compare(folder: Path, clips: int, rounds: int, workers: int) -> None:
    sources = make_sources(folder, clips)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
    for number in range(rounds):
        for name, source in sources.items():
            target = folder / f"out-{number}-{name}"
            times[name].append(measured(lambda source=source, target=target: convert_wav(source, target, workers=workers)))
    print(f"{clips} clips, {workers} workers, {rounds} rounds")
    print("| | CPU ms a file | files a CPU second | its CPU / the folder's (least, most) | its time / the folder's |")
    for name, each in times.items():
        clock, cpu = ([own[k] / base[k] for base, own in zip(times["folder"], each, strict=True)] for k in (0, 1))
        median = statistics.median(used for _, used in each)
        spread = f"{statistics.median(cpu):.2f} ({min(cpu):.2f}, {max(cpu):.2f})"
        print(f"| {name} | {1000 * median / clips:.2f} | {clips / median:.0f} | {spread} | {statistics.median(clock):.2f} |")


def compare_listing(folder: Path, members: int) -> None:
    files = {f"{number:08d}.wav": b"RIFF" * 4 for number in range(members)}
    write_tar(folder / "many.tar", files)
    write_zip(folder / "many.zip", files, zipfile.ZIP_STORED)
    write_parquet(folder / "many.parquet", files)
    print(f"\n| listing {members:,} members | CPU s | members a CPU second |")
    for kind in ("tar", "zip", "parquet"):
        _, cpu = measured(lambda kind=kind: list_members([str(folder / f"many.{kind}")], (".wav",)))
        print(f"| {kind} | {cpu:.2f} | {members / cpu:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--listed", type=int, default=100_000, help="members of the archives that are only listed")
    args = parser.parse_args()
    keep_freed_memory(*KEPT_MEMORY)  # as m2d convert does
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.clips, args.rounds, args.workers)
        compare_listing(Path(folder), args.listed)


if __name__ == "__main__":
    main()
