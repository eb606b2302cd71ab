"""Encode audio files of any length in bounded memory: decoded, transformed and encoded stretch by stretch."""

import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import cast

import numpy as np
import soundfile
import torch
import torch.nn.functional as F

from ..audio.ahead import decode_ahead
from ..audio.decode import WarningCount
from ..audio.framing import Segment, segments
from ..audio.logmel_torch import log_mel_of_frames
from ..utils.device import OnHost, to_device
from ..utils.names import shown
from ..utils.parallel import Progress, usable_cores
from .runtime import RuntimeM2D

logger = logging.getLogger("m2d")

BATCH_SIZE_HELP = "pieces of the model's input length encoded at a time; none: 8, on CUDA as many as fill it"
WORKERS_HELP = "files decoded at a time; none: 4, beside a GPU one for each core, up to 16"
_BATCH_SIZE = 8
_WORKERS, _MOST_WORKERS = 4, 16

# Pieces that wait for others of their length, in batches, before the most numerous are encoded as they are.
_WAITING_BATCHES = 4
# Beside a GPU, so many files are worth starting processes that decode them, .3 s of a core each. Not measured on a GPU.
_MANY_FILES = 500
# Files from this size on count in the progress by quarters.
_LARGE_FILE = 1 << 24


class Sink(ABC):
    """What takes the embeddings of files, which are known by their place in `paths`.

    Attributes:
        left_out: files that could not be read to their end, or whose embeddings are not finite.
        warned: files that were read though something is wrong with them.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.warned = WarningCount()
        self.left_out: list[Path] = []

    def condense(self, embeddings: torch.Tensor) -> torch.Tensor:
        """What `put` needs of the embeddings `[B, t, D]` of a batch of pieces: `[B, …]`, computed on CUDA where they are there.

        A number that is not finite must leave one in its piece's part.
        """
        return embeddings

    @abstractmethod
    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        """Take the embeddings `[t, D]`, float32 on the CPU, of a file's time steps from `step` on, as `condense` left them."""

    @abstractmethod
    def complete(self, clip: int, samples: int, frames: int) -> None:
        """All embeddings of a file were put; it has `samples` samples and `frames` spectrogram frames."""

    def discard(self, clip: int, reason: str) -> None:
        """Leave a file out, of which some embeddings may have been put."""
        self.left_out.append(self.paths[clip])
        logger.error("left out: %s", reason)


def log_mel_of(parts: Sequence[Segment], runtime: RuntimeM2D) -> tuple[torch.Tensor, list[int]]:
    """The log-mel of segments, one after the other, with some frames in between that are none of theirs.

    Returns:
        `[n_mels, frames]`, and where the frames of each segment begin.
    """
    hop, n_fft = runtime.front_end.hop_size, runtime.front_end.n_fft
    *starts, end = accumulate((-(-len(segment.audio) // hop) for segment in parts), initial=0)
    audio = torch.zeros(end * hop + n_fft - hop, device=runtime.backbone.cls_token.device)
    for segment, start in zip(parts, starts, strict=True):
        audio[start * hop : start * hop + len(segment.audio)].copy_(torch.as_tensor(segment.audio), non_blocking=audio.is_cuda)
    return log_mel_of_frames(runtime.to_spec, audio.unfold(0, n_fft, hop)), starts


@dataclass
class _Clip:
    """A clip that is not complete: its size so far, its pieces and time steps, pieces that wait to be encoded."""

    samples: int = 0
    frames: int = 0
    pieces: int = 0
    steps: int = 0
    waiting: int = 0
    ended: bool = False
    finite: bool = True


@dataclass(frozen=True)
class _Piece:
    """A piece of a clip: its first time step, and its frames, of one of the segments that are held."""

    clip: int
    step: int
    segment: int
    start: int
    length: int


class StreamEncoder:
    """Encodes clips of any lengths together: pieces of equal length share a batch, whichever clip they are of.

    Spectrograms are computed for a batch of pieces at a time, whatever their lengths.

    Args:
        runtime: the model, in evaluation.
        batch_size: pieces that are encoded at a time.
        sink: takes the embeddings, in any order.
        ahead: batches that the device may have before the oldest one's embeddings are waited for; none: 1 on CUDA, else 0.

    Attributes:
        framing: cuts a clip that comes in stretches `[samples]` at the model's rate into segments; without a model.
    """

    def __init__(self, runtime: RuntimeM2D, batch_size: int, sink: Sink, ahead: int | None = None):
        self.runtime, self.batch_size, self.sink = runtime, batch_size, sink
        self.ahead = int(runtime.backbone.cls_token.is_cuda) if ahead is None else ahead
        self._cutting = runtime.cutting
        self.framing = partial(segments, front_end=runtime.front_end, unit=self._cutting.unit)
        self._encoded: deque[tuple[Sequence[_Piece], OnHost]] = deque()
        self._clips: dict[int, _Clip] = {}
        self._number = -1
        self._segments: list[Segment] = []
        self._untransformed: list[_Piece] = []
        self._waiting: dict[int, list[tuple[_Piece, torch.Tensor]]] = {}

    def hold(self, segment: Segment) -> Segment:
        """A segment where `add` wants it; in any thread. CUDA copies from page-locked memory while the host continues."""
        on_cuda = self.runtime.backbone.cls_token.is_cuda
        return replace(segment, audio=torch.from_numpy(segment.audio).pin_memory()) if on_cuda else segment

    def start(self) -> None:
        """Begin the next clip."""
        self._number += 1
        self._clips[self._number] = _Clip()

    def add(self, segment: Segment) -> None:
        """Take the next segment of the clip."""
        clip = self._clips[self._number]
        clip.samples, clip.frames = clip.samples + segment.samples, clip.frames + segment.frames
        lengths = self._cutting.lengths(clip.frames, clip.pieces)
        for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
            self._untransformed.append(_Piece(self._number, clip.steps, len(self._segments), start, length))
            clip.steps += length // self._cutting.patch
        clip.pieces, clip.waiting = clip.pieces + len(lengths), clip.waiting + len(lengths)
        if lengths:
            self._segments.append(segment)
        if len(self._untransformed) >= self.batch_size:
            self._transform()

    def end(self) -> None:
        """The clip is at its end."""
        self._clips[self._number].ended = True
        self._complete_if_done(self._number)

    def abandon(self, reason: str) -> None:
        """The clip cannot be read to its end: discard it."""
        del self._clips[self._number]
        self.sink.discard(self._number, reason)

    def flush(self) -> None:
        """Encode what waits, and hand over all that is encoded."""
        self._transform()
        for frames in list(self._waiting):
            self._encode(frames)
        self._hand_over(0)

    @torch.no_grad()
    def _transform(self) -> None:
        """Compute the spectrograms of the segments held, and queue their pieces to be encoded."""
        held, pieces = self._segments, self._untransformed
        self._segments, self._untransformed = [], []
        if not pieces:
            return
        with _out_of_memory(len(pieces)):
            ready = list(self._spectrograms(held, pieces))
        for piece, lms in ready:
            self._take(piece, lms)

    def _spectrograms(self, held: list[Segment], pieces: list[_Piece]) -> Iterator[tuple[_Piece, torch.Tensor]]:
        """Pieces and their normalised spectrograms `[n_mels, frames]`, those of the same length together."""
        lms, starts = log_mel_of(held, self.runtime)
        # A column of zeros: the end is padded after normalisation, so with the mean, as the runtime does it.
        lms = F.pad(self.runtime.normalize_batch(lms), (0, 1))
        for length in dict.fromkeys(piece.length for piece in pieces):
            alike = [piece for piece in pieces if piece.length == length]
            begin = np.array([[starts[piece.segment] + piece.start] for piece in alike])
            end = np.array([[starts[piece.segment] + held[piece.segment].frames] for piece in alike])
            columns = begin + np.arange(length)
            columns[columns >= end] = lms.shape[1] - 1
            taken = lms.index_select(1, to_device(torch.from_numpy(columns.ravel()), lms.device))
            yield from zip(alike, taken.unflatten(1, columns.shape).unbind(1), strict=True)

    def _take(self, piece: _Piece, lms: torch.Tensor) -> None:
        """Queue a piece, and encode the batch that it completes."""
        self._waiting.setdefault(piece.length, []).append((piece, lms))
        if len(self._waiting[piece.length]) == self.batch_size:
            self._encode(piece.length)
        while sum(map(len, self._waiting.values())) > _WAITING_BATCHES * self.batch_size:
            self._encode(max(self._waiting, key=lambda length: len(self._waiting[length])))

    @torch.no_grad()
    def _encode(self, length: int) -> None:
        pieces, parts = zip(*self._waiting.pop(length), strict=True)
        with _out_of_memory(len(pieces)):
            lms = torch.stack(parts)[:, None]
            encoded = cast(torch.Tensor, self.runtime.encode_lms(lms, average_per_time_frame=True)).float()
            condensed = self.sink.condense(encoded if encoded.is_cuda else encoded.cpu())
            # A sum is finite where all of it is: less to read than a flag of each number.
            self._encoded.append((pieces, OnHost(condensed, condensed.flatten(1).sum(dim=1, dtype=torch.float64))))
        self._hand_over(self.ahead)

    def _hand_over(self, left: int) -> None:
        """Give the sink the oldest batches, except the newest few, which may still be computing."""
        while len(self._encoded) > left:
            pieces, encoded = self._encoded.popleft()
            values, sums = encoded.get()
            finite = sums.isfinite().tolist()
            for piece, embeddings, is_finite in zip(pieces, values, finite, strict=True):
                clip = self._clips.get(piece.clip)
                if clip is None:  # abandoned meanwhile
                    continue
                clip.waiting -= 1
                clip.finite = clip.finite and is_finite
                if clip.finite:
                    self.sink.put(piece.clip, piece.step, embeddings)
                self._complete_if_done(piece.clip)

    def _complete_if_done(self, number: int) -> None:
        clip = self._clips[number]
        if not clip.ended or clip.waiting:
            return
        del self._clips[number]
        if clip.finite:
            self.sink.complete(number, clip.samples, clip.frames)
        else:
            self.sink.discard(number, f"{shown(self.sink.paths[number])}: its embeddings are not finite numbers")


@contextmanager
def _out_of_memory(pieces: int) -> Iterator[None]:
    """Name the flag where the device has too little memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise ValueError(f"out of memory while encoding {pieces} pieces at a time: lower --batch_size") from error


class _FileProgress:
    """Counts a file in the progress: at its end, or a large one by quarters."""

    def __init__(self, progress: Progress, path: Path):
        self._progress, self._path, self._seconds, self._counted = progress, path, 0.0, 0.0

    def add(self, seconds: float) -> None:
        """So many further seconds are encoded."""
        is_first, self._seconds = not self._seconds, self._seconds + seconds
        if not is_first and self._duration:
            self._count(min(3, int(4 * self._seconds / self._duration)) / 4)

    def end(self) -> None:
        """The file is done."""
        self._count(1)

    def _count(self, share: float) -> None:
        if share > self._counted:
            self._progress.update(share - self._counted)
            self._counted = share

    @cached_property
    def _duration(self) -> float | None:
        """Seconds of a large file, as its header has it; None for a small one, and where the header does not say."""
        try:
            return soundfile.info(self._path).duration if self._path.stat().st_size >= _LARGE_FILE else None
        except (OSError, RuntimeError, TypeError):
            return None


def check_counts(batch_size: int | None, workers: int | None) -> None:
    """Raise ValueError for a --batch_size or --workers below 1."""
    if any(count is not None and count < 1 for count in (batch_size, workers)):
        raise ValueError("--batch_size and --workers are at least 1")


def encode_files(runtime: RuntimeM2D, sink: Sink, batch_size: int | None, workers: int | None) -> None:
    """Send the sink's files through the model, in memory that does not depend on their lengths.

    Without a batch size it is 8; on CUDA as large as the device's block. Without a number of workers, files that are decoded
    at a time, it is 4; on CUDA one for each core, up to 16. Any error of a file leaves out that file alone.

    Raises:
        ValueError: a count below 1, or a batch does not fit into the device's memory.
        OSError: so many threads cannot be started.
    """
    check_counts(batch_size, workers)
    on_cuda = runtime.backbone.cls_token.is_cuda
    if batch_size is None:
        batch_size = runtime.pieces_at_once if on_cuda else _BATCH_SIZE
    workers = workers or default_workers(on_cuda)
    runtime.use_fast_code()
    encoder = StreamEncoder(runtime, batch_size, sink)
    in_processes = decodes_in_processes(runtime, len(sink.paths))
    decoded = decode_ahead(sink.paths, runtime.sample_rate, workers, encoder.framing, encoder.hold, in_processes)
    with Progress(len(sink.paths), "file") as progress, closing(decoded) as clips:
        for clip in clips:
            encoder.start()
            counted = _FileProgress(progress, clip.path)
            for segment in clip:
                if isinstance(segment, Exception):
                    encoder.abandon(_reason(clip.path, segment))
                    break
                encoder.add(segment)
                counted.add(segment.samples / runtime.sample_rate)
            else:
                encoder.end()
                sink.warned.add(clip.warnings, clip.seconds_left_out)
            counted.end()
        encoder.flush()


def default_workers(on_cuda: bool) -> int:
    """Files decoded at a time. Without a GPU the cores are busy with encoding."""
    return min(usable_cores(), _MOST_WORKERS) if on_cuda else _WORKERS


def decodes_in_processes(runtime: RuntimeM2D, files: int) -> bool:
    """Whether processes decode: threads would wait for the interpreter's lock, which feeds the GPU."""
    return runtime.backbone.cls_token.is_cuda and files >= _MANY_FILES


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read; the messages of our own errors name the file."""
    named = isinstance(error, (OSError, ValueError)) and shown(path) in str(error)
    return str(error) if named else f"{shown(path)}: {type(error).__name__} {error}".rstrip()


@torch.no_grad()
def check_finite(runtime: RuntimeM2D) -> None:
    """Raise ValueError where a model gives numbers that are not finite: a tensor of it is damaged, or it overflows.

    Two clips, under the caller's autocast: of one, or in another precision, compiled code would be compiled once more.
    """
    for name, tensor in runtime.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{runtime.cfg.weight_file} holds numbers that are not finite, in {name}: fetch or export it again")
    noise = 0.01 * torch.randn(2, runtime.sample_rate, generator=torch.Generator().manual_seed(0))
    if not runtime.encode(noise).isfinite().all():
        raise ValueError(f"{runtime.cfg.weight_file} gives embeddings that are not finite numbers, even for faint noise")
