"""Packs straight from audio files: what `wav_to_lms.py --pack` writes in place of a .npy file per clip.

Workers compute the spectrograms; this process writes them into the pack's chunks, in the order of the list.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ...audio.convert import Converter, Job, Outcome
from ...audio.failed import FAILED_OF_ALL, PACK_FAILED_COLUMNS, failed_name, remove_merged
from ...utils.atomic_file import write_csv
from ...utils.read_file import open_regular
from ...utils.shard import WHOLE, Shard
from ..clip_list import TextColumn, columns_digest
from .format import PackInfo, chunk_path, chunks_of, default_chunk_clips, missing_chunks
from .index import read_index, text_column
from .writer import PackedClip, discard_outdated, pack_clip, packing, start_pack, write_chunk


@dataclass(frozen=True)
class PackSink:
    """A converter's sink that makes of a spectrogram what goes into a pack."""

    dtype: str

    def __call__(self, target: str, lms: np.ndarray) -> PackedClip:
        return pack_clip(lms, self.dtype)


class AudioPack:
    """A pack that is made of audio files; its clips are named by their jobs' targets.

    Args:
        folder: the pack. One that an earlier run of the same jobs began is continued; chunks whose files have changed since
            are made again.
        jobs: all files, in the list's order.
        converter: how they are converted.
        dtype: float16 or float32.
        chunk_clips: files per chunk.
        broken: files that cannot be listed among the jobs, and why.
        shard: which of the chunks are written here.

    Raises:
        ValueError: the folder holds something else, or a pack of other files or settings.
    """

    def __init__(
        self,
        folder: Path,
        jobs: list[Job],
        converter: Converter,
        dtype: str,
        chunk_clips: int | None = None,
        broken: Mapping[str, str] = MappingProxyType({}),
        shard: Shard = WHOLE,
    ):
        self.folder, self.jobs, self.shard = folder, jobs, shard
        names = {"file_name": TextColumn.of(_name(job) for job in jobs)}
        front_end = converter.front_end
        self.info = PackInfo(
            list_digest=columns_digest(names),
            clips=len(jobs),
            chunk_clips=chunk_clips or default_chunk_clips(len(jobs)),
            dtype=dtype,
            n_mels=front_end.n_mels,
            feature_width=0,
            columns=tuple(names),
            made_from=f"audio at {front_end.sample_rate} Hz, padded to {converter.min_samples} samples or more",
        )
        start_pack(folder, self.info)
        discard_outdated(folder, self.info, chunks_of(self.info, shard), lambda i: jobs[i].file)
        self._lacking = missing_chunks(folder, self.info, shard)
        self._left_out = {name: ("", reason) for name, reason in broken.items()} | self._find_left_out()

    @property
    def left_out(self) -> dict[str, str]:
        """Files that the chunks that are there had to leave out, and broken ones, with reasons."""
        return {name: reason for name, (_, reason) in self._left_out.items()}

    @property
    def files(self) -> int:
        """How many files belong to the shard."""
        return sum(len(self._jobs_of(chunk)) for chunk in chunks_of(self.info, self.shard))

    def jobs_left(self) -> list[Job]:
        """The files of the chunks that are not there yet."""
        return [job for chunk in self._lacking for job in self._jobs_of(chunk)]

    def write(self, outcomes: Iterator[Outcome]) -> None:
        """Write the missing chunks from the outcomes of `jobs_left()`, in order, and what they leave out into failed.csv.

        Raises:
            UserError: another process is packing.
            OSError: the disk is full, or the folder is not writable.
        """
        with packing(self.folder, self.shard):
            self._write_chunks(outcomes)

    def _write_chunks(self, outcomes: Iterator[Outcome]) -> None:
        self._write_failed()
        for chunk in self._lacking:
            jobs = self._jobs_of(chunk)
            left_out = {}
            with write_chunk(self.folder, self.info, chunk) as writer:
                for job, outcome in zip(jobs, islice(outcomes, len(jobs)), strict=True):
                    if outcome.error:
                        left_out[job.name] = (_stem(chunk), outcome.error)
                    else:
                        writer.add(outcome.made, {"file_name": _name(job)})
            self._left_out |= left_out
            self._write_failed()

    def _write_failed(self) -> None:
        path = self.folder / failed_name(self.shard)
        if self._left_out:
            rows = sorted((name, chunk, reason) for name, (chunk, reason) in self._left_out.items())
            write_csv(path, PACK_FAILED_COLUMNS, rows)
        else:
            path.unlink(missing_ok=True)
        remove_merged(self.folder, self.shard, PACK_FAILED_COLUMNS)

    def _find_left_out(self) -> dict[str, tuple[str, str]]:
        """Of the chunks that are there: names, chunks and, where failed.csv still has them, reasons."""
        reasons = {}
        for path in sorted(self.folder.glob(FAILED_OF_ALL)):
            reasons |= _read_reasons(path)
        found = {}
        for chunk in sorted(set(chunks_of(self.info, self.shard)) - set(self._lacking)):
            packed = text_column(read_index(self.folder, self.info, chunk), "file_name")
            jobs = self._jobs_of(chunk)
            if len(packed) < len(jobs):
                present = set(packed)
                lost = (job.name for job in jobs if _name(job) not in present)
                found |= {name: (_stem(chunk), reasons.get(name, "left out by an earlier run")) for name in lost}
        return found

    def _jobs_of(self, chunk: int) -> list[Job]:
        begin = chunk * self.info.chunk_clips
        return self.jobs[begin : begin + self.info.chunk_clips]


def _name(job: Job) -> str:
    # A name that is not UTF-8 cannot be listed; the converter refuses its file.
    return Path(job.target).as_posix().encode(errors="backslashreplace").decode()


def _stem(chunk: int) -> str:
    return chunk_path("", chunk, "*").stem


def _read_reasons(path: Path) -> dict[str, str]:
    try:
        with open(open_regular(path), encoding="utf-8", newline="") as table:
            return {row["file_name"]: row["reason"] for row in csv.DictReader(table)}
    except (OSError, ValueError, KeyError, csv.Error):
        return {}
