"""Audio files to log-mel spectrograms, the training data of M2D: `python wav_to_lms.py SRC DEST` (or `--pack OUT.pack`).

Torch is imported only where it is used (ToLogMelSpec, --device cuda), so that a run starts at once.
"""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import fire
import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from m2d.audio.convert import (
    FAILED,
    FAILED_COLUMNS,
    KEPT_MEMORY,
    PACK_FAILED_COLUMNS,
    Converter,
    DeviceMel,
    Job,
    Outcome,
    Sink,
    convert_all,
    is_done,
    npy_sink,
)
from m2d.audio.listing import find_audio, walk_files
from m2d.audio.logmel import PRESETS, FrontEnd, NumpyLogMel
from m2d.utils.atomic_file import remove_leftover, write_csv
from m2d.utils.malloc import keep_freed_memory
from m2d.utils.outputs import check_outputs, has_header, lists_only

if TYPE_CHECKING:
    import torch

    from m2d.data.pack.from_audio import AudioPack

logger = logging.getLogger("m2d")


class FFT_parameters:
    """The sizes of the 16-kHz front end, as attributes that may be changed."""

    sample_rate = PRESETS["16k"].sample_rate
    window_size = PRESETS["16k"].window_size
    n_fft = PRESETS["16k"].n_fft
    hop_size = PRESETS["16k"].hop_size
    n_mels = PRESETS["16k"].n_mels
    f_min = PRESETS["16k"].f_min
    f_max = PRESETS["16k"].f_max


class ToLogMelSpec:
    """Waveform `[samples]` to log-mel spectrogram, a float32 tensor `[1, n_mels, frames]`.

    Args:
        cfg: an object with the attributes of FFT_parameters.
    """

    def __init__(self, cfg: object):
        self._log_mel = NumpyLogMel(FrontEnd(**{size.name: getattr(cfg, size.name) for size in fields(FrontEnd)}))

    def __call__(self, waveform: np.ndarray) -> "torch.Tensor":
        import torch

        if np.ndim(waveform) != 1:
            raise ValueError(f"the waveform has the shape {list(np.shape(waveform))}: expected [samples]")
        return torch.from_numpy(self._log_mel(waveform))[None]


@dataclass
class Report:
    """What a run did: `found` files, of which `existing` were done before; names converted; names and reasons failed."""

    found: int
    existing: int
    converted: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = len(self.converted) / max(self.seconds, 1e-9)
        return (
            f"{self.found} files: {len(self.converted)} converted, {self.existing} were there already, "
            f"{len(self.failed)} failed ({self.seconds:.1f} s, {rate:.0f} files/s)"
        )


def convert_wav(
    from_dir: str | os.PathLike,
    to_dir: str | os.PathLike | None = None,
    suffix: str | Iterable[str] = ".wav",
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
) -> Report:
    """Convert a folder of audio files to log-mel spectrograms: SRC/sub/a.wav becomes DEST/sub/a.npy.

    wav_to_lms.py SRC DEST [flags]
    wav_to_lms.py SRC --pack OUT.pack [flags]

    Each is float32 [1, 80, frames], 100 frames a second. Files that exist are skipped, so that the same command goes
    on after an interruption. Files that cannot be converted are listed in DEST/failed.csv.

    With --pack OUT.pack in the place of DEST, all go into a few large files, which training takes as --csv_main
    OUT.pack. The same command goes on with the chunks that lack. Files that cannot be converted are left out, and
    listed in OUT.pack/failed.csv; to try them again, remove the chunk-N.* files that it names.

    Exit status: 0 all converted; 1 some failed, or the run was stopped; 2 nothing was started.

    Args:
        from_dir: SRC, the folder to walk; its files are taken in sorted order.
        to_dir: DEST, the folder to write to; not with --pack.
        suffix: the audio files' suffix, or a list: wav,flac,ogg,mp3. Upper and lower case count as the same.
        skip: leave out this many files at the start of the sorted order.
        min_length: zero-pad shorter clips to this many seconds; None: do not pad.
        verbose: name each file.
        workers: processes; as many as there are CPU cores where it is not given.
        csv: also write the list of the spectrograms (column file_name, relative to the list's own folder).
        sr: sample rate, 16k or 32k.
        device: where the spectrograms are computed: cpu, cuda or mps.
        pack: the pack to write, a folder, in the place of DEST.
        dtype: of a pack's values: float16 (half the size, rounded by at most 0.004; the default) or float32.
        chunk_clips: clips per file of a pack: 8192, or more where there were too many files.
        overwrite: replace a list (--csv) or failed.csv that is there and that no conversion of these files wrote.
    """
    started = time.perf_counter()
    _check_paths(SRC=from_dir, DEST=to_dir or "", csv=csv or "", pack=pack or "")
    _check_options(skip, min_length, workers, sr)
    _check_output(to_dir, csv, pack, dtype, chunk_clips)
    min_samples = round((min_length or 0) * PRESETS[sr].sample_rate)
    folder = Path(os.path.abspath(to_dir if pack is None else pack))
    if csv is not None:
        _check_list_place(csv, folder)
    jobs = _plan(Path(from_dir), folder if pack is None else Path(), _suffixes(suffix))
    chosen = jobs[skip:]
    if not chosen:
        raise ValueError(f"--skip {skip} leaves none of the {len(jobs)} files in {from_dir}")
    _check_own_files(folder, csv, jobs, overwrite, pack is not None)
    converter = Converter(PRESETS[sr], min_samples, npy_sink if pack is None else _pack_sink(dtype), decode_only=device != "cpu")
    finish = None if device == "cpu" else DeviceMel(converter, device)
    report = Report(found=len(chosen), existing=0)
    if pack is None:
        existing = _existing_targets(folder)
        to_do = [job for job in chosen if job.target not in existing]
    else:
        audio_pack = _open_pack(folder, chosen, converter, chunk_clips, report)
        to_do = audio_pack.jobs_left()
    report.existing = len(chosen) - len(to_do) - len(report.failed)
    workers = min(workers or _cpu_count(), max(1, len(to_do)))
    try:
        with closing(_converted(to_do, converter, finish, workers, verbose, report, in_order=pack is not None)) as outcomes:
            if pack is None:
                deque(outcomes, maxlen=0)
            else:
                _write_pack(audio_pack, outcomes, report)
    finally:
        report.seconds = time.perf_counter() - started
        if pack is None:
            _write_failed(folder / FAILED, report.failed)
        logger.info("%s%s", report, f": see {folder / FAILED}" if report.failed else "")
    if csv is not None:
        _write_list(Path(csv), [job.target for job in jobs if job.target in existing or job.name in report.converted])
    return report


def _converted(
    jobs: list[Job],
    converter: Converter,
    finish: DeviceMel | None,
    workers: int,
    verbose: bool,
    report: Report,
    in_order: bool,
) -> Iterator[Outcome]:
    """The outcomes of jobs, each in the report, the log and the progress bar."""
    with (
        closing(convert_all(jobs, converter, workers, in_order)) as chunks,
        tqdm(total=len(jobs), unit="file", disable=None) as bar,
    ):
        for outcomes in chunks:
            for outcome in finish(outcomes) if finish else outcomes:
                if outcome.fatal:
                    raise OSError(f"{outcome.error}. Stopped: files written are whole, and the same command goes on from here")
                if outcome.error:
                    report.failed[outcome.job.name] = outcome.error
                    logger.warning("failed: %s", outcome.error.encode(errors="backslashreplace").decode())
                else:
                    report.converted.add(outcome.job.name)
                    if verbose:
                        logger.info("%s -> %s: %d frames", outcome.job.source, outcome.job.target, outcome.frames)
                yield outcome
            bar.update(len(outcomes))


def _pack_sink(dtype: str | None) -> Sink:
    from m2d.data.pack.from_audio import PackSink  # reads lists with Arrow, which takes a moment to import

    return PackSink(dtype or "float16")


def _open_pack(folder: Path, jobs: list[Job], converter: Converter, chunk_clips: int | None, report: Report) -> "AudioPack":
    """Begin a pack, or go on with it; what earlier runs had to leave out counts as failed."""
    from m2d.data.pack.from_audio import AudioPack

    audio_pack = AudioPack(folder, jobs, converter, converter.sink.dtype, chunk_clips)
    report.failed.update(audio_pack.left_out)
    return audio_pack


def _write_pack(audio_pack: "AudioPack", outcomes: Iterator[Outcome], report: Report) -> None:
    try:
        audio_pack.write(outcomes)
    except OSError as error:
        if error.errno is None:  # it is explained already
            raise
        raise OSError(
            f"{audio_pack.folder} cannot be written: {error.strerror}. "
            "Stopped: its chunks are whole, and the same command goes on with those that lack"
        ) from None


def _check_paths(**paths: object) -> None:
    for name, path in paths.items():
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"{name} was read as the value {path!r}: put ./ before a path that looks like a number")


def _is_number(value: object, kinds: type | tuple[type, ...], least: float) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool) and value >= least


def _check_options(skip: int, min_length: float | None, workers: int | None, sr: str) -> None:
    if not _is_number(skip, int, 0):
        raise ValueError(f"--skip {skip}: expected a number of files, 0 or more")
    if min_length is not None and not _is_number(min_length, (int, float), 0):
        raise ValueError(f"--min_length {min_length}: expected seconds, or None")
    if workers is not None and not _is_number(workers, int, 1):
        raise ValueError(f"--workers {workers}: expected a number of processes, 1 or more")
    if sr not in PRESETS:
        raise ValueError(f"--sr {sr}: expected one of {', '.join(PRESETS)}")


def _check_output(
    to_dir: object, csv: object, pack: str | os.PathLike | None, dtype: str | None, chunk_clips: int | None
) -> None:
    if (to_dir is None) == (pack is None):
        raise ValueError("give a folder, DEST, for a .npy file per clip, or --pack OUT.pack for a few large files: one of both")
    if pack is None:
        if dtype is not None or chunk_clips is not None:
            raise ValueError("--dtype and --chunk_clips are for --pack; .npy files are float32, one per clip")
        return
    if csv is not None:
        raise ValueError("--csv lists .npy files; a pack holds its list itself")
    if dtype not in (None, "float16", "float32"):
        raise ValueError(f"--dtype {dtype}: expected float16 or float32")
    if chunk_clips is not None and not _is_number(chunk_clips, int, 1):
        raise ValueError(f"--chunk_clips {chunk_clips}: expected a number of clips, 1 or more")


def _check_list_place(csv: str | os.PathLike, dest: Path) -> None:
    if Path(csv).suffix != ".csv":
        raise ValueError(f"--csv {csv}: expected a file name that ends in .csv")
    folder = Path(os.path.abspath(csv)).parent
    if not dest.is_relative_to(folder):
        raise ValueError(
            f"--csv {csv} would list files relative to its own folder, {folder}, but {dest} is not below that folder: "
            "put the list in a folder above DEST"
        )


def _check_own_files(folder: Path, csv: str | os.PathLike | None, jobs: list[Job], overwrite: bool, packed: bool) -> None:
    """Refuse a failed.csv and a list that no conversion of these files wrote."""
    columns = PACK_FAILED_COLUMNS if packed else FAILED_COLUMNS
    if os.path.lexists(folder / FAILED):
        check_outputs([folder / FAILED], (), overwrite, lambda path: has_header(path, columns))
    if csv is not None:
        inputs = (job.source for job in jobs if job.source.endswith(".csv"))
        check_outputs([csv], inputs, overwrite, lambda path: lists_only(path, {_listed(job.target, path) for job in jobs}))


def _suffixes(suffix: str | Iterable[str]) -> list[str]:
    parts = suffix.strip("[]() ").split(",") if isinstance(suffix, str) else suffix
    names = [str(part).strip(" '\"").lstrip(".") for part in parts]
    if not any(names):
        raise ValueError(f"--suffix {suffix}: expected a suffix such as wav, or a list such as wav,flac")
    return [f".{name}" for name in names if name]


def _plan(source: Path, dest: Path, suffixes: list[str]) -> list[Job]:
    sources = find_audio(source, suffixes)
    if not sources:
        raise FileNotFoundError(f"there is no file with the suffix {' or '.join(suffixes)} in {source}")
    jobs: dict[str, Job] = {}
    for path in sources:
        name = path.relative_to(source)
        job = Job(str(name), str(path), str(dest / name.with_suffix(".npy")))
        first = jobs.setdefault(job.target, job)
        if first is not job:
            raise ValueError(
                f"{first.source} and {job.source} would both become {job.target}: rename one, "
                "or convert one suffix at a time into folders of their own"
            )
    return list(jobs.values())


def _existing_targets(dest: Path) -> set[str]:
    if dest.exists() and not dest.is_dir():
        raise NotADirectoryError(f"{dest} is a file: DEST must be a folder")
    try:
        dest.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the folder {dest} cannot be made: {error.strerror}") from None
    targets = set()
    for path in walk_files(dest):
        if is_done(path):
            targets.add(path)
        else:
            remove_leftover(path)
    return targets


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_failed(path: Path, failed: dict[str, str]) -> None:
    try:
        if failed:
            write_csv(path, FAILED_COLUMNS, sorted(failed.items()))
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, error.strerror)


def _write_list(path: Path, targets: list[str]) -> None:
    write_csv(path, ("file_name",), ((_listed(target, path),) for target in targets))
    logger.info("%s lists %d files", path, len(targets))


def _listed(target: str, csv: Path) -> str:
    """A spectrogram as a list names it: relative to the list's own folder."""
    return Path(target).relative_to(Path(os.path.abspath(csv)).parent).as_posix()


class _Request:
    """The command line's arguments, held back until all of them are understood: fire would run first and complain later."""

    def __init__(self, *args: object, **kwargs: object):
        self._args, self._kwargs = args, kwargs


def main() -> int:
    """The command line; returns the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keep_freed_memory(*KEPT_MEMORY)

    @wraps(convert_wav)
    def request(*args: object, **kwargs: object) -> _Request:
        return _Request(*args, **kwargs)

    asked = fire.Fire(request, name="wav_to_lms.py", serialize=lambda _: None)
    try:
        with logging_redirect_tqdm():
            report = convert_wav(*asked._args, **asked._kwargs)
    except KeyboardInterrupt:
        logger.error("interrupted: the files written are whole, and the same command goes on from here")
        return 130
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        logger.error("error: %s", error)
        return 2
    except (OSError, RuntimeError) as error:
        logger.error("error: %s", error)
        return 1
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
