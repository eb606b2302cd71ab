"""Pack a list's log-mel spectrograms into a few large files, from which training reads several times faster.

    m2d pack data/files_audioset.csv --data_path data --out data/audioset.pack
    m2d pack --verify data/audioset.pack
    m2d pack --verify s3://bucket/audioset.pack

The pack replaces the list: --csv_main data/audioset.pack (and --csv_bg_noise, --csv_val). A list of .npz files
(speech/extract_offline_ls960.py) gives a pack with features. Columns `label` and `weight` come along.
A .tar, .zip or .parquet of audio, its address, a pattern of these in quotes, or a list of addresses, in place of the list
is the same as m2d convert ARCHIVE --pack OUT.pack.
A run that was stopped continues where it was when it is started again. --shard 2/4 writes the second of four parts,
so that machines that share a disk do it together; on disks of their own, copy the parts into one folder after it.
float16 halves the size and rounds the log-mel values, by at most 0.004; --dtype float32 keeps them to the bit.
"""

import argparse
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..audio.sources.addresses import lists_addresses
from ..audio.sources.find import find_archives
from ..data.clip_list import ClipList, read_list
from ..data.feature_store import NpzStore
from ..data.file_store import FileStore, NpyStore
from ..data.pack.format import (
    DTYPES,
    PackInfo,
    chunks_of,
    default_chunk_clips,
    info_path,
    missing_chunks,
)
from ..data.pack.verify import verify
from ..data.pack.writer import PackedClip, discard_outdated, pack_clip, packing, start_pack, write_chunk
from ..utils.addresses import is_address, public_name
from ..utils.names import shown
from ..utils.outputs import check_writable
from ..utils.parallel import Progress, map_ahead, usable_cores
from ..utils.program import ArgumentParser, run_program
from ..utils.shard import WHOLE, Shard, shard_of
from .convert import convert

logger = logging.getLogger("m2d")

_READ_AHEAD = 64


def open_files(clips: ClipList, data_path: str, n_mels: int) -> FileStore:
    """The files of a list, .npy or .npz, none of those looked at missing."""
    store = (NpzStore if clips.names[0].endswith(".npz") else NpyStore)(clips, data_path, n_mels)
    store.check_present()
    return store


def read_clip(store: FileStore, i: int, dtype: str) -> PackedClip:
    """Clip i of a list, ready to be written.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or holds NaN; names file and row.
    """
    if isinstance(store, NpzStore):
        lms, features, valid = store.read_whole(i)
    else:
        lms, features, valid = store.read_whole(i), None, 0
    try:
        return pack_clip(lms, dtype, features, valid)
    except ValueError as error:
        raise ValueError(f"{store.where(i)}: {error}") from None


def pack(store: FileStore, clips: ClipList, out: Path, info: PackInfo, shard: Shard, workers: int) -> int:
    """Write the missing chunks of a shard. Returns how many clips were written."""
    start_pack(out, info)
    with packing(out, shard):
        discard_outdated(out, info, chunks_of(info, shard), store.path)
        chunks = missing_chunks(out, info, shard)
        ranges = {k: info.clips_in(k) for k in chunks}
        total = sum(map(len, ranges.values()))
        with Progress(total, "clip") as progress, ThreadPoolExecutor(workers) as pool:
            for chunk, items in ranges.items():
                with write_chunk(out, info, chunk) as writer:
                    packed = map_ahead(pool, lambda i: read_clip(store, i, info.dtype), items, _READ_AHEAD)
                    for i, clip in zip(items, packed, strict=True):
                        writer.add(clip, {name: column[i] for name, column in clips.columns.items()})
                        progress.update()
    return total


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("csv", nargs="?", help="the list: a CSV with a column file_name; or archives of audio")
    parser.add_argument("--data_path", default="data", help="folder that the file names are relative to")
    parser.add_argument("--out", type=Path, help="the pack to write: a folder")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the values in the pack")
    parser.add_argument("--n_mels", type=int, default=80, help="mel bands of the files")
    parser.add_argument("--chunk_clips", type=int, help="clips per file of the pack (8192, or more where there were too many)")
    parser.add_argument("--shard", type=shard_of, default=WHOLE, metavar="I/N", help="write only the I-th of N parts")
    parser.add_argument("--workers", type=int, default=min(8, usable_cores()), help="threads that read")
    parser.add_argument("--verify", metavar="PACK", help="compare a pack, a folder or an address, with its checksums")
    args = parser.parse_args(argv)
    if (args.verify is None) == (args.csv is None or args.out is None):
        parser.error("give a CSV and --out to pack, or --verify PACK to check one")
    if args.workers < 1 or (args.chunk_clips is not None and args.chunk_clips < 1):
        parser.error("--workers and --chunk_clips must be above 0")
    return args


def run_pack(args: argparse.Namespace) -> int:
    """Pack what is missing; returns the exit status."""
    check_writable(info_path(args.out) if args.out.is_dir() else args.out)
    if find_archives(args.csv) is not None or lists_addresses(args.csv):
        options = dict(dtype=args.dtype, chunk_clips=args.chunk_clips, workers=args.workers, shard=args.shard)
        return convert(dict(from_dir=args.csv, pack=args.out, **options))
    clips = read_list(args.csv, optional=("label", "weight"))
    store = open_files(clips, args.data_path, args.n_mels)
    info = PackInfo(
        list_digest=clips.digest(),
        clips=len(clips),
        chunk_clips=args.chunk_clips or default_chunk_clips(len(clips)),
        dtype=args.dtype,
        n_mels=args.n_mels,
        feature_width=store.feature_width if isinstance(store, NpzStore) else 0,
        columns=tuple(clips.columns),
    )
    written = pack(store, clips, args.out, info, args.shard, args.workers)
    missing = missing_chunks(args.out, info)
    logger.info("%s: %d clips written, %d of %d chunks there", args.out, written, info.chunks - len(missing), info.chunks)
    return 0


def run_verify(pack: str, workers: int) -> int:
    """Check a pack in a folder or at an address; returns the exit status: 1 where it is damaged."""
    damaged, name = verify(pack, workers), public_name(pack) if is_address(pack) else shown(pack)
    for line in damaged[:20]:
        logger.error("%s", line)
    if damaged:
        logger.error("%s: damaged in %d places: remove the files of those chunks and pack the list again", name, len(damaged))
        return 1
    logger.info("%s: whole", name)
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    return run_program(
        lambda: run_verify(args.verify, args.workers) if args.verify else run_pack(args),
        interrupted="interrupted: the same command continues where it stopped",
    )


if __name__ == "__main__":
    sys.exit(main())
