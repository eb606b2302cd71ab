"""Comparing a pack, in a folder or at an address, with the checksums of its clips."""

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ...utils.parallel import Progress
from .files import PackFiles
from .format import HEADER_BYTES, PackInfo, array_header, missing_chunks, read_info
from .index import read_index, text_column
from .remote import files_of


def verify(pack: str | Path, workers: int) -> list[str]:
    """Compare every clip of a pack with its checksum. Returns what is damaged, and what is missing.

    Raises:
        FileNotFoundError: there is no pack.
        FileError: it cannot be fetched, or its pack.json is damaged.
    """
    files = files_of(pack)
    with files.head() as folder:
        info = read_info(folder)
        missing = missing_chunks(folder, info)
        found = [f"{files.where(k, 'index.npz')}: not there" for k in missing]
        there = [k for k in range(info.chunks) if k not in set(missing)]

        def check(chunk: int) -> list[str]:
            try:
                return _damaged_clips(files, folder, info, chunk, progress.update)
            except (OSError, ValueError) as error:
                return [str(error).replace(str(folder), str(files.source))]

        with Progress(info.clips, "clip") as progress, ThreadPoolExecutor(workers) as pool:
            for damaged in pool.map(check, there):
                found += damaged
    return found


def _damaged_clips(files: PackFiles, folder: Path, info: PackInfo, chunk: int, progress: Callable[[int], None]) -> list[str]:
    """What of a chunk does not have the checksum of its index, by clip."""
    index = read_index(folder, info, chunk)
    names = text_column(index, "file_name")
    damaged = []
    for part, width, prefix in (("frames.npy", info.n_mels, ""), ("features.npy", info.feature_width, "feature_")):
        if not width:
            continue
        lengths, row_bytes = index[f"{prefix}lengths"], width * np.dtype(info.dtype).itemsize
        where, has, needs = files.where(chunk, part), files.size(chunk, part), HEADER_BYTES + int(lengths.sum()) * row_bytes
        if has != needs:
            damaged.append(f"{where}: {has} bytes, its index says {needs}")
            continue
        with files.open(chunk, part) as data:
            if data.read(HEADER_BYTES) != array_header((int(lengths.sum()), width), info.dtype):
                damaged.append(f"{where}: its header")
            for i, (rows, crc) in enumerate(zip(lengths, index[f"{prefix}crc"], strict=True)):
                if zlib.crc32(data.read(int(rows) * row_bytes)) != crc:
                    damaged.append(f"{where}: {names[i]}")
    progress(len(names))
    return damaged
