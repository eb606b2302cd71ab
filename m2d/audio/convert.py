"""Converting many audio files to log-mel spectrograms: one file, a pool of workers, files that appear whole.

Free of torch unless a device computes the spectrograms.
"""

import errno
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import wait as wait_for_connection
from multiprocessing.synchronize import Event

import numpy as np
from numpy.lib import format as npy_format

from ..utils.atomic_file import open_atomic
from ..utils.errors import first_line
from ..utils.malloc import keep_freed_memory
from ..utils.names import shown
from ..utils.parallel import map_ahead
from .decode import DecodedAudio, read_audio
from .logmel import FrontEnd, NumpyLogMel
from .sources.archive_file import StorageError
from .sources.member import InMemory, Place

KEPT_MEMORY = (2**26, 2**27)  # bytes of a block, and at the end of a worker's heap
_FILES_PER_CHUNK = 16
# Outcomes in order wait for each other, in memory, with what the sink made of them.
_FILES_PER_ORDERED_CHUNK = 4
# Errors of the disk or the folder, not of one file: every later file would fail as well.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@dataclass(frozen=True)
class Job:
    """One file to convert; `name` is its path below the source folder.

    `source`: its path, or, where it has a `place` in an archive, its name in messages.
    """

    name: str
    source: str
    target: str
    place: Place | None = None

    @property
    def file(self) -> str:
        """The path of the file that holds it, which may be an archive."""
        return self.source if self.place is None else self.place.path


@dataclass(frozen=True)
class Outcome:
    """The result of a job: frames, and what the sink made of them, or an error that names the file.

    `waveform`: decoded only, and the spectrogram is left to the caller. `fatal`: later jobs would fail as well.
    `warnings`, `seconds_left_out`: of its audio, which was read all the same.
    """

    job: Job
    frames: int = 0
    made: object = None
    waveform: np.ndarray | None = None
    error: str = ""
    fatal: bool = False
    warnings: tuple[str, ...] = ()
    seconds_left_out: float = 0.0


Sink = Callable[[str, np.ndarray], object]


def npy_sink(target: str, lms: np.ndarray) -> None:
    """Write a spectrogram `[n_mels, frames]` as the .npy file `target`, `[1, n_mels, frames]`: whole or not at all.

    Not forced to the disk, which would take longer than the conversion: a machine that loses power may leave empty
    files, and `is_done` does not count them.

    Raises:
        OSError: the disk is full, or the folder is not writable.
    """
    os.makedirs(os.path.dirname(target), exist_ok=True)
    lms = np.ascontiguousarray(lms[None])
    with open_atomic(target, durable=False) as file:
        # np.save would write by C's stdio, whose errors do not distinguish a full disk.
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(lms))
        file.write(lms.data)


def is_done(path: str) -> bool:
    """Whether a file is a spectrogram that was written completely."""
    return path.endswith(".npy") and os.path.isfile(path) and os.path.getsize(path) > 0


class Converter:
    """Converts one file: what each worker does, with its filters built once.

    Args:
        front_end: the sizes.
        min_samples: shorter clips are zero-padded at their end to this length.
        sink: takes (target, spectrogram `[n_mels, frames]`).
        decode_only: leave the spectrogram to the caller, who passes it to `finish`.
    """

    def __init__(self, front_end: FrontEnd, min_samples: int, sink: Sink, decode_only: bool = False):
        self.front_end, self.min_samples, self.sink, self.decode_only = front_end, min_samples, sink, decode_only
        self._log_mel = NumpyLogMel(front_end)

    def __call__(self, job: Job) -> Outcome:
        try:
            if any("\ud800" <= character <= "\udfff" for character in job.name):
                raise ValueError(f"{shown(job.source)} has a name that is not UTF-8, which no list can hold: rename it")
            waveform, warnings, seconds_left_out = self._read(job)
            if len(waveform) < self.min_samples:
                waveform = np.pad(waveform, (0, self.min_samples - len(waveform)))
            outcome = Outcome(job, waveform=waveform, warnings=tuple(warnings), seconds_left_out=seconds_left_out)
            if self.decode_only:
                return outcome
            with np.errstate(over="ignore", invalid="ignore"):  # finish() finds what is not finite
                return self.finish(outcome, self._log_mel(waveform))
        except (OSError, ValueError) as error:
            return Outcome(job, error=str(error))
        except StorageError as error:
            return Outcome(job, error=str(error), fatal=True)
        except Exception as error:  # whatever a damaged file does to a decoder, or to memory, the run continues with the next one
            return Outcome(job, error=f"{shown(job.source)}: {type(error).__name__}: {error}")

    def _read(self, job: Job) -> DecodedAudio:
        if job.place is None:
            return read_audio(job.source, self.front_end.sample_rate)
        try:
            content = job.place.read()
        except ValueError as error:
            raise ValueError(f"{shown(job.source)} {error}") from None
        except OSError as error:
            raise OSError(f"{shown(job.source)} cannot be read: {error.strerror or error}") from None
        return read_audio(content, self.front_end.sample_rate, job.source)

    def finish(self, outcome: Outcome, lms: np.ndarray) -> Outcome:
        """Check the spectrogram `[n_mels, frames]` of a decoded file and hand it to the sink."""
        job = outcome.job
        if not np.isfinite(lms).all():
            return Outcome(job, error=f"{shown(job.source)} holds NaN, infinity or samples beyond any scale")
        try:
            made = self.sink(job.target, lms)
        except OSError as error:
            reason = f"{shown(job.target)} cannot be written: {error.strerror}"
            return Outcome(job, error=reason, fatal=error.errno in _FATAL)
        return replace(outcome, waveform=None, frames=lms.shape[-1], made=made)


class DeviceMel:
    """Finishes what a decode-only converter left: spectrograms on a device, in batches of clips of one length.

    Raises:
        ValueError: there is no such device.
    """

    def __init__(self, converter: Converter, device: str):
        import torch

        from .logmel_torch import LogMel

        self._torch, self._converter, self._device = torch, converter, device
        try:
            self._log_mel = LogMel(converter.front_end).to(device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {device} cannot be used here: {first_line(error)}") from None
        self._on_cpu = NumpyLogMel(converter.front_end)
        self._max_samples = 600 * converter.front_end.sample_rate

    def __call__(self, outcomes: list[Outcome]) -> list[Outcome]:
        done = list(outcomes)
        waveforms = {i: outcome.waveform for i, outcome in enumerate(outcomes) if outcome.waveform is not None}
        by_length: dict[int, list[int]] = {}
        for i, waveform in waveforms.items():
            by_length.setdefault(len(waveform), []).append(i)
        for samples, group in by_length.items():
            size = max(1, self._max_samples // samples)
            for begin in range(0, len(group), size):
                places = group[begin : begin + size]
                try:
                    spectrograms = self._spectrograms([waveforms[i] for i in places])
                except MemoryError as error:
                    for i in places:
                        job = outcomes[i].job
                        done[i] = Outcome(job, error=f"{shown(job.source)}: MemoryError: {error}")
                    continue
                for i, lms in zip(places, spectrograms, strict=True):
                    done[i] = self._converter.finish(outcomes[i], lms)
        return done

    def _spectrograms(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        if len(waveforms[0]) > self._max_samples:  # may not fit in the device's memory
            return [self._on_cpu(waveform) for waveform in waveforms]
        with self._torch.inference_mode():
            batch = self._torch.from_numpy(np.stack(waveforms))
            return list(self._log_mel(batch.to(self._device)).cpu().numpy())


_worker: dict = {}  # what a worker process holds: its converter, and the event that stops it


def convert_all(
    jobs: list[Job], converter: Converter, workers: int, in_order: bool = False
) -> Generator[list[Outcome], None, None]:
    """Convert in `workers` processes (1: in this one). Outcomes come in chunks; `in_order`, in the order of the jobs.

    Closing the iterator ends the workers after the files they are at.

    Raises:
        RuntimeError: a worker died.
    """
    size = max(1, min(_FILES_PER_ORDERED_CHUNK if in_order else _FILES_PER_CHUNK, len(jobs) // (4 * workers)))
    if workers == 1:
        yield from ([converter(job)] for job in jobs)
        return
    chunks = (list(map(_with_content, jobs[begin : begin + size])) for begin in range(0, len(jobs), size))
    # A fork starts at once and needs no main guard in the calling program; only Linux forks safely.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(converter, stop))
    try:
        yield from map_ahead(pool, _convert_chunk, chunks, 3 * workers) if in_order else _results(pool, chunks, 2 * workers)
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died (killed, or out of memory): the files written are whole, and the same command "
            "continues from here; use fewer --workers if memory ran out"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _with_content(job: Job) -> Job:
    """A job with its file's bytes, where one process must read them in order."""
    if job.place is None or not job.place.in_turn:
        return job
    try:
        return replace(job, place=InMemory(job.file, job.place.read()))
    except (OSError, ValueError, StorageError) as error:
        return replace(job, place=InMemory(job.file, error))


def _results(pool: ProcessPoolExecutor, chunks: Iterable[list[Job]], in_flight: int) -> Iterator[list[Outcome]]:
    chunks = iter(chunks)
    pending: set[Future] = {pool.submit(_convert_chunk, chunk) for chunk in islice(chunks, in_flight)}
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        pending |= {pool.submit(_convert_chunk, chunk) for chunk in islice(chunks, len(done))}
        for future in done:
            yield future.result()


def _start_worker(converter: Converter, stop: Event) -> None:
    keep_freed_memory(*KEPT_MEMORY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    _worker.update(converter=converter, stop=stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_connection([parent.sentinel])
    os._exit(1)


def _convert_chunk(jobs: list[Job]) -> list[Outcome]:
    outcomes = []
    for job in jobs:
        if _worker["stop"].is_set():
            break
        outcomes.append(_worker["converter"](job))
        if outcomes[-1].fatal:
            _worker["stop"].set()
    return outcomes
