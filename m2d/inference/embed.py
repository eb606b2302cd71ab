"""Embeddings of audio files.

    m2d embed song.wav recordings/ --weights m2d_vit_base-80x608p16x16-221006-mr7_enconly --out embeddings.npz

takes files, folders and lists (.csv with a column file_name) of any format that libsndfile reads, of any length and rate,
mixes them to mono and resamples them. The .npz holds

    files        [N]             paths, also in a .csv of the same name, with seconds and rows of each
    embeddings   [N, D]          a vector per file, the mean over time
                 [rows, D]       with --level frame: one per time step, all files one after the other
    file_index   [rows]          with --level frame: which of the files a row belongs to
    times_ms     [rows]          with --level frame: when its time step begins

A file that cannot be read is reported and left out; the exit status is then 1.
"""

import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from ..utils.atomic_file import write_csv, write_npz
from ..utils.device import pick_device
from ..utils.malloc import keep_freed_memory
from ..utils.program import ArgumentParser, run_program
from .clips import decode_ahead, list_clips
from .runtime import RuntimeM2D

log = logging.getLogger("m2d")

# Pieces that wait for others of their length, before the most numerous are encoded as they are.
_WAITING_BATCHES = 8


@dataclass
class Clip:
    """A file with the time steps of its embeddings: `rows` of them from row `start` on."""

    path: Path
    seconds: float
    start: int
    rows: int


@dataclass
class Piece:
    """A stretch of a clip's spectrogram `[1, n_mels, frames]`, whose embeddings belong from `row` of all on."""

    clip: int
    row: int
    lms: torch.Tensor


class ClipEncoder:
    """Encodes clips of any lengths together: pieces of equal length share a batch, whichever clip they are of.

    Args:
        runtime: the model, in evaluation.
        batch_size: pieces that are encoded at a time.
        put: takes a piece and its embeddings `[t, D]`, float32 on the CPU, in any order.
    """

    def __init__(self, runtime: RuntimeM2D, batch_size: int, put: Callable[[Piece, torch.Tensor], None]):
        self.runtime, self.batch_size, self.put = runtime, batch_size, put
        self.clips: list[Clip] = []
        self._waiting: dict[int, list[Piece]] = {}

    @torch.no_grad()
    def add(self, path: Path, waveform: np.ndarray) -> None:
        """Take a clip `[samples]` at the model's rate."""
        lms = self.runtime.to_normalized_spec(torch.from_numpy(waveform)[None])
        patch = self.runtime.backbone.patch_size()[1]
        start = row = self.clips[-1].start + self.clips[-1].rows if self.clips else 0
        for lms_piece in self.runtime.split_lms(lms):
            frames = lms_piece.shape[-1]
            self._waiting.setdefault(frames, []).append(Piece(len(self.clips), row, lms_piece[0]))
            row += frames // patch
            if len(self._waiting[frames]) == self.batch_size:
                self._encode(frames)
        self.clips.append(Clip(path, len(waveform) / self.runtime.sample_rate, start, row - start))
        while sum(map(len, self._waiting.values())) > _WAITING_BATCHES * self.batch_size:
            self._encode(max(self._waiting, key=lambda frames: len(self._waiting[frames])))

    def finish(self) -> None:
        """Encode what still waits."""
        for frames in list(self._waiting):
            self._encode(frames)

    @torch.no_grad()
    def _encode(self, frames: int) -> None:
        pieces = self._waiting.pop(frames)
        embeddings = self.runtime.encode_lms(torch.stack([piece.lms for piece in pieces]), average_per_time_frame=True)
        for piece, values in zip(pieces, embeddings.float().cpu(), strict=True):
            self.put(piece, values)


class ClipMeans:
    """One vector per clip: the mean of its time steps."""

    def __init__(self):
        self._sums: dict[int, torch.Tensor] = {}

    def put(self, piece: Piece, embeddings: torch.Tensor) -> None:
        """Take the embeddings of a piece."""
        self._sums[piece.clip] = self._sums.get(piece.clip, 0) + embeddings.double().sum(dim=0)

    def result(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        """The arrays to save."""
        means = [self._sums[i] / clip.rows for i, clip in enumerate(clips)]
        return {"embeddings": torch.stack(means).float().numpy()}


class FrameRows:
    """All time steps of all clips, gathered in a file aside: there may be more than fit in memory."""

    def __init__(self, file: BinaryIO):
        self._file = file

    def put(self, piece: Piece, embeddings: torch.Tensor) -> None:
        """Take the embeddings of a piece."""
        values = embeddings.numpy()
        self._file.seek(piece.row * values[0].nbytes)
        self._file.write(values.tobytes())

    def result(self, clips: list[Clip]) -> dict[str, np.ndarray]:
        """The arrays to save; the embeddings stay in the file."""
        self._file.flush()
        rows = [clip.rows for clip in clips]
        times = [np.arange(clip.rows) * (clip.seconds * 1000 / clip.rows) for clip in clips]
        return {
            "embeddings": np.memmap(self._file, dtype=np.float32, mode="r").reshape(sum(rows), -1),
            "file_index": np.repeat(np.arange(len(clips)), rows),
            "times_ms": np.concatenate(times).astype(np.float32),
        }


def embed(
    paths: Sequence[Path], runtime: RuntimeM2D, out: Path, per_frame: bool = False, batch_size: int = 16, threads: int = 4
) -> list[Path]:
    """Write the embeddings of audio files to `out` (.npz), and their names to a .csv beside it; returns those left out.

    Raises:
        ValueError: none of the files could be read.
        OSError: the disk is full, or the folder is not writable.
    """
    left_out = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent) as aside:
        sink = FrameRows(aside) if per_frame else ClipMeans()
        encoder = ClipEncoder(runtime, batch_size, sink.put)
        decoded = decode_ahead(paths, runtime.sample_rate, threads)
        for path, waveform in tqdm(decoded, total=len(paths), unit="file", disable=not sys.stderr.isatty()):
            if isinstance(waveform, Exception):
                log.error("left out: %s", waveform)
                left_out.append(path)
            else:
                encoder.add(path, waveform)
        encoder.finish()
        if not encoder.clips:
            raise ValueError(f"none of the {len(paths)} files could be read: nothing is written")
        _save(out, encoder.clips, sink.result(encoder.clips))
    return left_out


def _save(out: Path, clips: list[Clip], arrays: dict[str, np.ndarray]) -> None:
    write_npz(out, files=np.array([str(clip.path) for clip in clips]), **arrays)
    per_frame = "file_index" in arrays
    rows = (
        (clip.path, round(clip.seconds, 3), *((clip.start, clip.rows) if per_frame else (i, 1))) for i, clip in enumerate(clips)
    )
    write_csv(out.with_suffix(".csv"), ("file_name", "seconds", "row", "rows"), rows)
    log.info("%s: %d files, embeddings %s", out, len(clips), list(arrays["embeddings"].shape))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="audio files, folders, or lists (.csv)")
    parser.add_argument("--weights", required=True, help="checkpoint: a file, a folder, or an https address")
    parser.add_argument("--out", required=True, type=Path, help="the .npz file to write")
    parser.add_argument("--level", choices=("clip", "frame"), default="clip", help="a vector per file, or per time step")
    parser.add_argument("--batch_size", type=int, default=16, help="pieces of the model's input length encoded at a time")
    parser.add_argument("--workers", "--threads", type=int, default=4, help="files decoded at a time")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    parser.add_argument("--bf16", action="store_true", help="encode in bfloat16: cosine with float32's above 0.999")
    args = parser.parse_intermixed_args(argv)

    def work() -> int:
        if args.out.suffix != ".npz":
            raise ValueError(f"--out {args.out}: a name that ends in .npz is expected")
        if min(args.batch_size, args.workers) < 1:
            raise ValueError("--batch_size and --workers are at least 1")
        clips = list_clips(args.audio)
        device = pick_device(args.device)
        runtime = RuntimeM2D(weight_file=args.weights).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            return 1 if embed(clips, runtime, args.out, args.level == "frame", args.batch_size, args.workers) else 0

    keep_freed_memory()
    return run_program(work, interrupted="interrupted: nothing is written")


if __name__ == "__main__":
    sys.exit(main())
