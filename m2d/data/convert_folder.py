"""A folder or archives of audio files to log-mel spectrograms: a .npy file each, or one pack. The work of `wav_to_lms.py`.

Torch is imported only where a device other than the CPU computes, so that a run starts at once.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from ..audio.convert import (
    Converter,
    DeviceMel,
    Job,
    Outcome,
    Sink,
    convert_all,
    is_done,
    npy_sink,
)
from ..audio.decode import WarningCount
from ..audio.failed import FAILED_COLUMNS, PACK_FAILED_COLUMNS, failed_name, write_failed
from ..audio.listing import walk_files
from ..audio.logmel import PRESETS
from ..audio.plan import plan_jobs
from ..audio.sources.archive_file import named
from ..audio.spectrogram_list import SpectrogramList
from ..utils.atomic_file import remove_leftover
from ..utils.names import shown
from ..utils.outputs import check_outputs, check_writable, has_header
from ..utils.parallel import usable_cores
from ..utils.shard import WHOLE, Shard

PACK_DTYPE = "float16"

logger = logging.getLogger("m2d")


@dataclass
class Report:
    """What a run did.

    Attributes:
        found: files, of which `existing` were done before.
        converted: names.
        failed: names and reasons.
        warned: those that were converted though something is wrong with them.
        seconds: the run took.
    """

    found: int = 0
    existing: int = 0
    converted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    warned: WarningCount = field(default_factory=WarningCount)
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = len(self.converted) / max(self.seconds, 1e-9)
        return (
            f"{self.found} files: {len(self.converted)} converted, {self.existing} were there already, "
            f"{len(self.failed)} failed{self.warned} ({self.seconds:.1f} s, {rate:.0f} files/s)"
        )

    def add(self, outcome: Outcome) -> None:
        """Count a file's result."""
        if outcome.error:
            self.failed[outcome.job.name] = outcome.error
            return
        self.converted.add(outcome.job.name)
        self.warned.add(outcome.warnings, outcome.seconds_left_out)


def convert_wav(
    from_dir: str | os.PathLike,
    to_dir: str | os.PathLike | None = None,
    suffix: str | Iterable[str] | None = None,
    skip: int = 0,
    min_length: float | None = 6.1,
    verbose: bool = False,
    workers: int | None = None,
    csv: str | os.PathLike | None = None,
    sr: str = "16k",
    device: str = "cpu",
    pack: str | os.PathLike | None = None,
    dtype: str | None = None,
    chunk_clips: int | None = None,
    overwrite: bool = False,
    shard: Shard = WHOLE,
    columns: str | None = None,
    separator: str = ";",
) -> Report:
    """Convert a folder of audio files, or archives of them, to log-mel spectrograms: SRC/sub/a.wav becomes DEST/sub/a.npy.

    Files that exist are skipped, so that the same call continues after an interruption.

    Args:
        from_dir: SRC, the folder to walk, a .tar, .zip or .parquet or its address, or a pattern that names several of these,
            such as shards/*.tar, whose files' names then begin with their archive's; or a list of addresses, of audio files or
            of archives. Files are taken in sorted order.
        to_dir: DEST, the folder to write to; not with `pack`.
        suffix: the audio files' suffix, or several: a list, or a text such as "wav,flac"; "all": every format, which is the
            default of archives; a folder's is wav.
        skip: leave out this many files at the start of the sorted order.
        min_length: zero-pad shorter clips to this many seconds; None: do not pad.
        verbose: name each file.
        workers: processes; as many as there are CPU cores where it is not given.
        csv: also write the list of the spectrograms (column file_name, relative to the list's own folder).
        sr: sample rate, 16k or 32k.
        device: where the spectrograms are computed: cpu, cuda or mps.
        pack: the pack to write, a folder, in place of DEST.
        dtype: of a pack's values: float16 (half the size, rounded by at most 0.004; the default) or float32.
        chunk_clips: clips per file of a pack: 8192, or more where there were too many files.
        overwrite: replace a list (csv) or failed.csv that is there and that no conversion of these files wrote.
        shard: convert only this part of the files (of a pack: of its chunks), so that machines share the work. The same call
            without it, when all are done, converts what is missing, and writes the list and failed.csv.
        columns, separator: what of parquet files the list has besides (`SpectrogramList`): label by default, where there is one.

    Raises:
        ValueError, FileNotFoundError, NotADirectoryError: an argument cannot be used; nothing was started.
        OSError, RuntimeError: the run was stopped: the disk is full, a folder is not writable, or a worker died.
    """
    started = time.perf_counter()
    _check_options(skip, min_length, workers, sr)
    folder = Path(os.path.abspath(_check_output(to_dir, csv, pack, dtype, chunk_clips)))
    _check_list_place(csv, columns, folder, shard)
    _check_failed(folder / failed_name(shard), overwrite, pack is not None)
    jobs, broken = plan_jobs(from_dir, folder if pack is None else Path(), suffix)
    chosen = jobs[skip:]
    if not chosen:
        raise ValueError(f"--skip {skip} leaves none of the {len(jobs)} files in {named(os.fspath(from_dir))}")
    listing = None if csv is None else SpectrogramList(Path(csv), jobs, columns, separator, overwrite)
    converter, finish = _make_converter(sr, min_length, npy_sink if pack is None else _pack_sink(dtype), device)
    report = _first_report(broken, shard)
    conversion = _Conversion(folder, chosen, shard, converter, finish, workers, verbose, report, started)
    if pack is not None:
        conversion.into_pack(dtype or PACK_DTYPE, chunk_clips)
        return report
    existing = conversion.into_files()
    if listing is not None:
        listing.write(job for job in jobs if job.target in existing or job.name in report.converted)
    return report


@dataclass(frozen=True)
class _Conversion:
    """A shard of files, how they are converted, and the report of it, which grows; `workers` None: as many as CPU cores."""

    folder: Path
    jobs: list[Job]
    shard: Shard
    converter: Converter
    finish: DeviceMel | None
    workers: int | None
    verbose: bool
    report: Report
    started: float

    def into_files(self) -> set[str]:
        """Write the .npy files that are missing, and failed.csv; returns the targets that were there before."""
        existing = _existing_targets(self.folder)
        jobs = [self.jobs[i] for i in self.shard.of(len(self.jobs))]
        self.report.found = len(jobs) + len(self.report.failed)
        try:
            with self._outcomes([job for job in jobs if job.target not in existing], in_order=False) as outcomes:
                deque(outcomes, maxlen=0)
        finally:
            write_failed(self.folder, self.shard, self.report.failed)
        return existing

    def into_pack(self, dtype: str, chunk_clips: int | None) -> None:
        """Write the chunks that are missing; files that earlier runs left out count as failed."""
        from .pack.from_audio import AudioPack

        pack = AudioPack(self.folder, self.jobs, self.converter, dtype, chunk_clips, self.report.failed, self.shard)
        self.report.found = pack.files + len(self.report.failed)
        self.report.failed.update(pack.left_out)
        try:
            with self._outcomes(pack.jobs_left(), in_order=True) as outcomes:
                pack.write(outcomes)
        except OSError as error:
            if error.errno is None:  # it is explained already
                raise
            raise OSError(
                f"{shown(self.folder)} cannot be written: {error.strerror}. "
                "Stopped: its chunks are whole, and the same command continues with the missing ones"
            ) from None

    @contextmanager
    def _outcomes(self, jobs: list[Job], in_order: bool) -> Iterator[Iterator[Outcome]]:
        """The outcomes of jobs; logs the report at the end, however that comes."""
        report = self.report
        report.existing = report.found - len(jobs) - len(report.failed)
        workers = min(self.workers or usable_cores(), max(1, len(jobs)))
        try:
            with closing(self._converted(jobs, workers, in_order)) as outcomes:
                yield outcomes
        finally:
            report.seconds = time.perf_counter() - self.started
            see = f": see {shown(self.folder / failed_name(self.shard))}" if report.failed else ""
            logger.info("%s%s", report, see)

    def _converted(self, jobs: list[Job], workers: int, in_order: bool) -> Generator[Outcome, None, None]:
        """The outcomes of jobs, each in the report, the log and the progress bar."""
        with (
            closing(convert_all(jobs, self.converter, workers, in_order)) as chunks,
            tqdm(total=len(jobs), unit="file", disable=None) as bar,
        ):
            for outcomes in chunks:
                for outcome in self.finish(outcomes) if self.finish else outcomes:
                    if outcome.fatal:
                        raise OSError(
                            f"{outcome.error}. Stopped: files written are whole, and the same command continues from here"
                        )
                    self.report.add(outcome)
                    _log(outcome, self.verbose)
                    yield outcome
                bar.update(len(outcomes))


def _make_converter(sr: str, min_length: float | None, sink: Sink, device: str) -> tuple[Converter, DeviceMel | None]:
    """What workers do with a file, and what computes the spectrograms of those that they decoded, on another device."""
    min_samples = round((min_length or 0) * PRESETS[sr].sample_rate)
    converter = Converter(PRESETS[sr], min_samples, sink, decode_only=device != "cpu")
    return converter, None if device == "cpu" else DeviceMel(converter, device)


def _first_report(broken: dict[str, str], shard: Shard) -> Report:
    """The report before the work: what cannot be listed has failed, in the first shard."""
    report = Report(failed=broken if shard.number == 1 else {})
    for reason in report.failed.values():
        logger.warning("failed: %s", reason)
    return report


def _log(outcome: Outcome, verbose: bool) -> None:
    if outcome.error:
        logger.warning("failed: %s", outcome.error)
        return
    for warning in outcome.warnings:
        logger.warning("%s", warning)
    if verbose:
        logger.info("%s -> %s: %d frames", shown(outcome.job.source), shown(outcome.job.target), outcome.frames)


def _pack_sink(dtype: str | None) -> Sink:
    from .pack.from_audio import PackSink  # reads lists with Arrow, which takes a moment to import

    return PackSink(dtype or PACK_DTYPE)


def _check_options(skip: int, min_length: float | None, workers: int | None, sr: str) -> None:
    if skip < 0:
        raise ValueError(f"--skip {skip}: expected a number of files, 0 or more")
    if min_length is not None and not 0 <= min_length < float("inf"):
        raise ValueError(f"--min_length {min_length}: expected seconds, or None")
    if workers is not None and workers < 1:
        raise ValueError(f"--workers {workers}: expected a number of processes, 1 or more")
    if sr not in PRESETS:
        raise ValueError(f"--sr {sr}: expected one of {', '.join(PRESETS)}")


def _check_output(
    to_dir: str | os.PathLike | None,
    csv: object,
    pack: str | os.PathLike | None,
    dtype: str | None,
    chunk_clips: int | None,
) -> str | os.PathLike:
    """What the spectrograms are written to: the folder DEST, or the pack."""
    if to_dir is not None and pack is None:
        if dtype is not None or chunk_clips is not None:
            raise ValueError("--dtype and --chunk_clips are for --pack; .npy files are float32, one per clip")
        return to_dir
    if pack is None or to_dir is not None:
        raise ValueError("give a folder, DEST, for a .npy file per clip, or --pack OUT.pack for a few large files: one of both")
    if csv is not None:
        raise ValueError("--csv lists .npy files; a pack holds its list itself")
    if dtype not in (None, "float16", "float32"):
        raise ValueError(f"--dtype {dtype}: expected float16 or float32")
    if chunk_clips is not None and chunk_clips < 1:
        raise ValueError(f"--chunk_clips {chunk_clips}: expected a number of clips, 1 or more")
    return pack


def _check_list_place(csv: str | os.PathLike | None, columns: str | None, dest: Path, shard: Shard) -> None:
    if csv is None:
        if columns is not None:
            raise ValueError(f"--columns {columns} needs --csv")
        return
    if shard.count > 1:
        raise ValueError("--csv lists the files of all shards: give it to the same command without --shard, when all are done")
    if Path(csv).suffix != ".csv":
        raise ValueError(f"--csv {shown(csv)}: expected a file name that ends in .csv")
    folder = Path(os.path.abspath(csv)).parent
    check_writable(Path(csv))
    if not dest.is_relative_to(folder):
        raise ValueError(
            f"--csv {shown(csv)} would list files relative to its own folder, {shown(folder)}, but {shown(dest)} is not below "
            "that folder: put the list in a folder above DEST"
        )


def _check_failed(path: Path, overwrite: bool, packed: bool) -> None:
    """Refuse a folder that takes no files, and to replace a failed.csv that no conversion wrote."""
    columns = PACK_FAILED_COLUMNS if packed else FAILED_COLUMNS
    check_outputs([path], (), overwrite, lambda path: has_header(path, columns))


def _existing_targets(dest: Path) -> set[str]:
    dest.mkdir(parents=True, exist_ok=True)
    targets = set()
    for path in walk_files(dest):
        if is_done(path):
            targets.add(path)
        else:
            remove_leftover(path)
    return targets
