"""Encode audio files of any length in bounded memory: decoded, transformed and encoded stretch by stretch."""

import argparse
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import soundfile
import torch
import torch.nn.functional as F

from ..audio.decode import WarningCount
from ..models.vit import has_triton
from ..utils.device import OnHost, to_device
from ..utils.names import shown
from ..utils.parallel import Progress
from .clips import decode_ahead
from .runtime import RuntimeM2D
from .waveforms import frame_count, margin

logger = logging.getLogger("m2d")

BATCH_SIZE_HELP = "pieces of the model's input length encoded at a time; none: 8, on CUDA as many as fill it"
_BATCH_SIZE = 8
_NO_AUDIO = np.empty(0, np.float32)

# Pieces that wait for others of their length, in batches, before the most numerous are encoded as they are.
_WAITING_BATCHES = 4
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


class LogMelStream:
    """The normalised log-mel of a waveform that comes in stretches: the frames are those of the whole."""

    def __init__(self, runtime: RuntimeM2D):
        self._runtime = runtime
        self._audio = _NO_AUDIO
        self._first = 0  # frame of the first sample held
        self.frames = 0
        self.samples = 0

    def add(self, audio: np.ndarray) -> torch.Tensor:
        """The frames `[1, 1, n_mels, n]`, possibly none, that a further stretch `[samples]` completes."""
        self._append(audio)
        front_end = self._runtime.front_end
        stop = self._first + len(self._audio) // front_end.hop_size - margin(front_end)
        lms = self._cut(max(stop, self.frames))
        keep = max(0, self.frames - margin(front_end))
        self._audio = self._audio[(keep - self._first) * front_end.hop_size :]
        self._first = keep
        return lms

    def _append(self, audio: np.ndarray) -> None:
        self._audio = np.concatenate([self._audio, audio]) if len(self._audio) else audio
        self.samples += len(audio)

    def finish(self, audio: np.ndarray = _NO_AUDIO) -> torch.Tensor:
        """The frames that remain, with those of a last stretch `[samples]`."""
        self._append(audio)
        return self._cut(self._first + frame_count(len(self._audio), self._runtime.front_end))

    def _cut(self, stop: int) -> torch.Tensor:
        start, self.frames = self.frames, stop
        if stop == start:
            return torch.empty(1, 1, self._runtime.front_end.n_mels, 0, device=self._runtime.backbone.cls_token.device)
        audio = to_device(torch.from_numpy(self._audio)[None], self._runtime.backbone.cls_token.device)
        return self._runtime.normalize_batch(self._runtime.log_mel(audio, start - self._first, stop - self._first))


@dataclass
class _Clip:
    """A clip that is not complete: its pieces and time steps, pieces that wait to be encoded, its size once it has ended."""

    pieces: int = 0
    steps: int = 0
    waiting: int = 0
    size: tuple[int, int] | None = None
    finite: bool = True


@dataclass
class _Piece:
    clip: int
    step: int
    lms: torch.Tensor


class StreamEncoder:
    """Encodes clips of any lengths together: pieces of equal length share a batch, whichever clip they are of.

    Args:
        runtime: the model, in evaluation.
        batch_size: pieces that are encoded at a time.
        sink: takes the embeddings, in any order.
        ahead: batches that the device may have before the oldest one's embeddings are waited for; none: 1 on CUDA, else 0.
    """

    def __init__(self, runtime: RuntimeM2D, batch_size: int, sink: Sink, ahead: int | None = None):
        self.runtime, self.batch_size, self.sink = runtime, batch_size, sink
        self.ahead = int(runtime.backbone.cls_token.is_cuda) if ahead is None else ahead
        self._encoded: deque[tuple[list[_Piece], OnHost]] = deque()
        self._clips: dict[int, _Clip] = {}
        self._number = -1
        self._waiting: dict[int, list[_Piece]] = {}

    def start(self) -> None:
        """Begin the next clip."""
        self._number += 1
        self._clips[self._number] = _Clip()
        self._log_mel = LogMelStream(self.runtime)
        self._last = _NO_AUDIO
        self._lms: list[torch.Tensor] = []

    @torch.no_grad()
    def add(self, audio: np.ndarray) -> None:
        """Take a further stretch `[samples]` of the clip, at the model's rate.

        It is transformed when the next one comes: a clip that comes in one stretch is transformed at once, in `end`.
        """
        previous, self._last = self._last, audio
        if not len(previous):
            return
        self._lms.append(self._log_mel.add(previous))
        unit = self.runtime.cutting.unit
        if sum(lms.shape[-1] for lms in self._lms) >= unit:
            *whole, rest = torch.cat(self._lms, dim=-1).split(unit, dim=-1)
            if rest.shape[-1] == unit:
                whole, rest = [*whole, rest], rest[..., :0]
            self._lms = [rest.clone()]
            for piece in whole:
                self._take(piece)

    @torch.no_grad()
    def end(self) -> None:
        """The clip is at its end."""
        rest = torch.cat([*self._lms, self._log_mel.finish(self._last)], dim=-1)
        clip, frames = self._clips[self._number], self._log_mel.frames
        lengths = self.runtime.cutting.lengths(frames)[clip.pieces :]
        # The end is padded after normalisation, so with the mean, as the runtime does it.
        padded = F.pad(rest, (0, max(0, sum(lengths) - rest.shape[-1])))
        for piece in padded[..., : sum(lengths)].split(lengths, dim=-1) if lengths else ():
            self._take(piece)
        clip.size = self._log_mel.samples, frames
        self._complete_if_done(self._number)

    def abandon(self, reason: str) -> None:
        """The clip cannot be read to its end: discard it."""
        self._waiting = {
            frames: kept
            for frames, pieces in self._waiting.items()
            if (kept := [piece for piece in pieces if piece.clip != self._number])
        }
        del self._clips[self._number]
        self.sink.discard(self._number, reason)

    def flush(self) -> None:
        """Encode what waits, and hand over all that is encoded."""
        for frames in list(self._waiting):
            self._encode(frames)
        self._hand_over(0)

    def _take(self, lms: torch.Tensor) -> None:
        """Queue a piece `[1, 1, n_mels, frames]` of the current clip, and encode the batch that it completes."""
        frames, clip = lms.shape[-1], self._clips[self._number]
        self._waiting.setdefault(frames, []).append(_Piece(self._number, clip.steps, lms[0]))
        clip.pieces, clip.waiting = clip.pieces + 1, clip.waiting + 1
        clip.steps += frames // self.runtime.cutting.patch
        if len(self._waiting[frames]) == self.batch_size:
            self._encode(frames)
        while sum(map(len, self._waiting.values())) > _WAITING_BATCHES * self.batch_size:
            self._encode(max(self._waiting, key=lambda length: len(self._waiting[length])))

    @torch.no_grad()
    def _encode(self, frames: int) -> None:
        pieces = self._waiting.pop(frames)
        lms = torch.stack([piece.lms for piece in pieces])
        try:
            encoded = cast(torch.Tensor, self.runtime.encode_lms(lms, average_per_time_frame=True)).float()
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "memory" not in str(error):
                raise
            raise ValueError(f"out of memory while encoding {len(pieces)} pieces at a time: lower --batch_size") from error
        self._encoded.append((pieces, OnHost(self.sink.condense(encoded if encoded.is_cuda else encoded.cpu()))))
        self._hand_over(self.ahead)

    def _hand_over(self, left: int) -> None:
        """Give the sink the oldest batches, but for so many that may still be under way."""
        while len(self._encoded) > left:
            pieces, encoded = self._encoded.popleft()
            for piece, embeddings in zip(pieces, encoded.get(), strict=True):
                clip = self._clips.get(piece.clip)
                if clip is None:  # abandoned meanwhile
                    continue
                clip.waiting -= 1
                clip.finite = clip.finite and bool(embeddings.isfinite().all())
                if clip.finite:
                    self.sink.put(piece.clip, piece.step, embeddings)
                self._complete_if_done(piece.clip)

    def _complete_if_done(self, number: int) -> None:
        clip = self._clips[number]
        if clip.size is None or clip.waiting:
            return
        del self._clips[number]
        if clip.finite:
            self.sink.complete(number, *clip.size)
        else:
            self.sink.discard(number, f"{shown(self.sink.paths[number])}: its embeddings are not finite numbers")


class _FileProgress:
    """Counts a file in the progress: at its end, or a large one by quarters."""

    def __init__(self, progress: Progress, path: Path):
        self._progress, self._seconds, self._counted = progress, 0.0, 0.0
        self._duration = _duration(path)

    def add(self, seconds: float) -> None:
        """So many further seconds are encoded."""
        self._seconds += seconds
        if self._duration:
            self._count(min(3, int(4 * self._seconds / self._duration)) / 4)

    def end(self) -> None:
        """The file is done."""
        self._count(1)

    def _count(self, share: float) -> None:
        if share > self._counted:
            self._progress.update(share - self._counted)
            self._counted = share


def _duration(path: Path) -> float | None:
    """Seconds of a large file, as its header has it; None for a small one, and where the header does not tell."""
    try:
        return soundfile.info(path).duration if path.stat().st_size >= _LARGE_FILE else None
    except (OSError, RuntimeError, TypeError):
        return None


def check_counts(args: argparse.Namespace) -> None:
    """Raise ValueError for a --batch_size or --workers below 1."""
    if args.workers < 1 or args.batch_size is not None and args.batch_size < 1:
        raise ValueError("--batch_size and --workers are at least 1")


def encode_files(runtime: RuntimeM2D, sink: Sink, batch_size: int | None, workers: int) -> None:
    """Send the sink's files through the model, in memory that does not depend on their lengths.

    Without a batch size it is 8; on CUDA as large as the device's block. Any error of a file leaves out that file alone.

    Raises:
        ValueError: a batch does not fit into the device's memory.
    """
    if batch_size is None:
        batch_size = runtime.pieces_at_once if runtime.backbone.cls_token.is_cuda else _BATCH_SIZE
    runtime.backbone.use_short_attention(has_triton())
    encoder = StreamEncoder(runtime, batch_size, sink)
    with Progress(len(sink.paths), "file") as progress:
        for clip in decode_ahead(sink.paths, runtime.sample_rate, workers):
            encoder.start()
            counted = _FileProgress(progress, clip.path)
            for stretch in clip:
                if isinstance(stretch, Exception):
                    encoder.abandon(_reason(clip.path, stretch))
                    break
                encoder.add(stretch)
                counted.add(len(stretch) / runtime.sample_rate)
            else:
                encoder.end()
                sink.warned.add(clip.warnings, clip.seconds_left_out)
            counted.end()
        encoder.flush()


def _reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read; the messages of our own errors name the file."""
    named = isinstance(error, (OSError, ValueError)) and shown(path) in str(error)
    return str(error) if named else f"{shown(path)}: {type(error).__name__} {error}".rstrip()


@torch.no_grad()
def check_finite(runtime: RuntimeM2D) -> None:
    """Raise ValueError where a model gives numbers that are not finite: a tensor of it is damaged, or it overflows."""
    for name, tensor in runtime.state_dict().items():
        if not tensor.isfinite().all():
            raise ValueError(f"{runtime.cfg.weight_file} holds numbers that are not finite, in {name}: fetch or export it again")
    noise = 0.01 * torch.randn(1, runtime.sample_rate, generator=torch.Generator().manual_seed(0))
    if not runtime.encode(noise).isfinite().all():
        raise ValueError(f"{runtime.cfg.weight_file} gives embeddings that are not finite numbers, even for faint noise")
