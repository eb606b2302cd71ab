"""Embeddings of audio files.

    m2d embed song.wav recordings/ --weights m2d_vit_base-80x608p16x16-221006-mr7_enconly --out embeddings.npz
    m2d embed recordings/ --out embeddings.npz

takes files, folders and lists (.csv with a column file_name) of any format (data/README.md), length and rate,
mixes them to mono and resamples them. Without --weights the encoder that a clone of this project has embeds them: tiny, a
small one (weights/README.md). The .npz holds

    files        [N]             paths, also in a table beside it, embeddings.files.csv, with seconds and rows of each
    embeddings   [N, D]          a vector per file, the mean over time
                 [rows, D]       with --level frame: one per time step, all files one after the other
    file_index   [rows]          with --level frame: which of the files a row belongs to
    times_ms     [rows]          with --level frame: when the patches of its time step begin
    clap         a text          with --clap: the weights

With --clap and M2D-CLAP's weights, embeddings are float16 and of length 1, in one space with those of texts: an index for
m2d search. The patches of a file are then held until its end, 6 MB for each minute with ViT-Base.

Files are decoded and encoded in stretches: with the default --batch_size the program needs up to 300 MB beside a model of
ViT-Base's size, however long the files are and however many. On a GPU decoding, copying and encoding overlap, encoding is
in bfloat16 (--precision fp32: in float32), and from 500 files on --workers processes decode in place of threads (50 MB
each). What is done is kept in embeddings.npz.partial/ until the end: the same command continues a run that was killed.

A file that cannot be read is reported and left out; the exit status is then 1.
"""

import argparse
import logging
import secrets
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..checkpoint.build import is_random
from ..checkpoint.shipped import DEFAULT
from ..checkpoint.weights import resolve
from ..utils.atomic_file import open_atomic, write_csv
from ..utils.compiled_code import try_compiled
from ..utils.device import no_tf32, pick_device
from ..utils.malloc import keep_freed_memory
from ..utils.names import counted, shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs
from ..utils.program import ArgumentParser, run_program
from .clips import add_audio, list_clips, name_in_list, parse_with_audio
from .pieces import Cutting
from .results import FileResult, PartialResults
from .runtime import RuntimeM2D
from .stream import BATCH_SIZE_HELP, WORKERS_HELP, Sink, check_counts, check_finite, encode_files

logger = logging.getLogger("m2d")


class ClipMeans(Sink):
    """One row per file: the mean of its time steps."""

    def __init__(self, paths: Sequence[Path], results: PartialResults, cutting: Cutting):
        super().__init__(paths)
        self._results, self._cutting = results, cutting
        self._sums: dict[int, torch.Tensor] = {}

    def condense(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.sum(dim=1, dtype=torch.float64)

    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        earlier = self._sums.get(clip)
        self._sums[clip] = embeddings if earlier is None else earlier + embeddings

    def complete(self, clip: int, samples: int, frames: int) -> None:
        mean = self._sums.pop(clip) / self._cutting.steps(frames)
        extent = self._results.append(mean.float().numpy()[None])
        self._results.add(self.paths[clip], samples, frames, [extent])

    def discard(self, clip: int, reason: str) -> None:
        self._sums.pop(clip, None)
        super().discard(clip, reason)


class FrameRows(Sink):
    """One row per time step of a file."""

    def __init__(self, paths: Sequence[Path], results: PartialResults):
        super().__init__(paths)
        self._results = results
        self._extents: dict[int, dict[int, list[int]]] = {}

    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        self._extents.setdefault(clip, {})[step] = self._results.append(embeddings.numpy())

    def complete(self, clip: int, samples: int, frames: int) -> None:
        extents = self._extents.pop(clip)
        self._results.add(self.paths[clip], samples, frames, [extents[step] for step in sorted(extents)])

    def discard(self, clip: int, reason: str) -> None:
        self._extents.pop(clip, None)
        super().discard(clip, reason)


class ClapVectors(Sink):
    """One row per file: its vector in M2D-CLAP's space, of length 1.

    Args:
        runtime: encodes the files, to stacked features.
        results: where the rows go; none: to `vectors`.

    Attributes:
        vectors: `[D]` by the file's place in `paths`.
    """

    def __init__(self, paths: Sequence[Path], runtime: RuntimeM2D, results: PartialResults | None = None):
        super().__init__(paths)
        self._runtime, self._results = runtime, results
        self._features: dict[int, dict[int, torch.Tensor]] = {}
        self.vectors: dict[int, torch.Tensor] = {}

    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        self._features.setdefault(clip, {})[step] = embeddings

    @torch.no_grad()
    def complete(self, clip: int, samples: int, frames: int) -> None:
        steps = self._features.pop(clip)
        features = torch.cat([steps[step] for step in sorted(steps)])[None].to(self._runtime.backbone.cls_token.device)
        vector = self._runtime.project_audio(self._runtime.clap_patches(features))[0].float()
        vector = F.normalize(vector, dim=0).cpu()
        if self._results is None:
            self.vectors[clip] = vector
        else:
            self._results.add(self.paths[clip], samples, frames, [self._results.append(vector.numpy()[None])])

    def discard(self, clip: int, reason: str) -> None:
        self._features.pop(clip, None)
        super().discard(clip, reason)


def table_of(out: Path) -> Path:
    """The table beside an output: embeddings.files.csv for embeddings.npz."""
    return out.with_suffix(".files.csv")


def embed(
    paths: Sequence[Path],
    runtime: RuntimeM2D,
    out: Path,
    per_frame: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    bf16: bool = False,
    overwrite: bool = False,
    clap: bool = False,
) -> list[Path]:
    """Write the embeddings of audio files to `out` (.npz), and a table of the files beside it; returns those left out.

    With `clap`, vectors in M2D-CLAP's space. Continues what an earlier call with the same weights and options left unfinished.

    Raises:
        ValueError: an output exists and `overwrite` is not given, it is one of the inputs, or no file could be read.
        OSError: the disk is full, or the folder is not writable.
    """
    check_outputs([out, table_of(out)], paths, overwrite)
    precision = torch.autocast(runtime.backbone.cls_token.device.type, torch.bfloat16, enabled=bf16)
    with precision:
        check_finite(runtime)
    level = "clap" if clap else "frame" if per_frame else "clip"
    settings = {"weights": _identity(runtime), "level": level, "bf16": bf16}
    width = runtime.backbone.embed_dim if clap else runtime.cfg.feature_d
    with PartialResults(out, settings, width, start_over=overwrite) as results:
        todo = results.todo(paths)
        if len(todo) < len(paths):
            logger.info("continuing: %d of %d files are done", len(paths) - len(todo), len(paths))
        sink = _sink(level, todo, results, runtime)
        with precision:
            encode_files(runtime, sink, batch_size, workers)
        left_out = set(sink.left_out)
        done = [results.done[str(path)] for path in paths if path not in left_out]
        if done:
            _write_npz(out, results, done, runtime, level)
            _write_table(table_of(out), done, runtime.sample_rate)
        results.remove()
    if not done:
        raise ValueError(f"none of the {len(paths)} files could be read: nothing is written")
    counts = f"{counted(len(done), 'file')}, {len(left_out)} left out{sink.warned}"
    logger.info("%s: %s, width %d", shown(out), counts, width)
    return sink.left_out


def _sink(level: str, paths: Sequence[Path], results: PartialResults, runtime: RuntimeM2D) -> Sink:
    if level == "clap":
        return ClapVectors(paths, runtime, results)
    return FrameRows(paths, results) if level == "frame" else ClipMeans(paths, results, runtime.cutting)


def _identity(runtime: RuntimeM2D) -> list[object]:
    """What identifies a checkpoint."""
    weights = runtime.cfg.weight_file
    if is_random(weights):
        return [weights, secrets.token_hex()]
    path = resolve(weights).resolve()
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _write_npz(out: Path, results: PartialResults, done: Sequence[FileResult], runtime: RuntimeM2D, level: str) -> None:
    """Write the output: the rows last, after their metadata."""
    rows = [result.rows for result in done]
    arrays = {"files": np.array([result.path for result in done])}
    if level == "clap":
        arrays["clap"] = np.array(str(resolve(runtime.cfg.weight_file).absolute()))
    elif level == "frame":
        arrays["file_index"] = np.repeat(np.arange(len(done)), rows)
        arrays["times_ms"] = np.concatenate([runtime.patch_times(result.samples).numpy() for result in done])
    with open_atomic(out) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            shape = (sum(rows), results.width)
            kind = "<f2" if level == "clap" else "<f4"
            np.lib.format.write_array_header_1_0(member, {"descr": kind, "fortran_order": False, "shape": shape})
            for block in results.blocks_of(done):
                member.write(np.frombuffer(block, "<f4").astype(kind, copy=False).data)


def _write_table(path: Path, done: Sequence[FileResult], sample_rate: int) -> None:
    """Write the table, a list that this program reads too."""
    starts = np.cumsum([0, *(result.rows for result in done)])
    rows = []
    for result, start in zip(done, starts[:-1], strict=True):
        rows.append((name_in_list(result.path, path.parent), round(result.samples / sample_rate, 3), start, result.rows))
    write_csv(path, ("file_name", "seconds", "row", "rows"), rows)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_audio(parser)
    parser.add_argument(
        "--weights",
        help=f"checkpoint: a file, a folder, an https address, or hf:owner/name; none: {DEFAULT}, a small one in weights/",
    )
    parser.add_argument("--out", required=True, type=Path, help="the .npz file to write")
    parser.add_argument("--level", choices=("clip", "frame"), default="clip", help="a vector per file, or per time step")
    parser.add_argument("--clap", action="store_true", help="an index for m2d search, by M2D-CLAP's weights")
    parser.add_argument("--batch_size", type=int, help=BATCH_SIZE_HELP)
    parser.add_argument("--workers", "--threads", type=int, help=WORKERS_HELP)
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    parser.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="bf16: bfloat16, cosine with float32's above 0.999; auto: bf16 on CUDA, else fp32",
    )
    compiled = "compile the encoder first, for half a minute or so, which only many thousand files on a GPU repay"
    parser.add_argument("--compile", action="store_true", help=compiled)
    parser.add_argument("--bf16", action="store_const", const="bf16", dest="precision", help="--precision bf16")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parse_with_audio(parser, argv)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether to encode in bfloat16, by --precision."""
    return precision == "bf16" or precision == "auto" and device.type == "cuda"


def compile_encoder(runtime: RuntimeM2D, bf16: bool) -> bool:
    """Compile a runtime's encoder for `embed`, which then needs no more compiling; returns whether that worked."""
    rows, columns = runtime.backbone.patch_embed.img_size
    device = runtime.backbone.cls_token.device

    @torch.no_grad()
    def encode() -> None:
        runtime.use_fast_code()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            runtime.encode_lms(torch.zeros(2, 1, rows, columns, device=device))

    backbone = runtime.backbone
    return try_compiled(backbone.compile_inference, encode, lambda: backbone.compile_inference(False))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where a file was left out."""
    args = parse_args(argv)

    def work() -> int:
        if args.out.suffix != ".npz":
            raise ValueError(f"--out {shown(args.out)}: expected a name that ends in .npz")
        check_counts(args.batch_size, args.workers)
        if args.clap and args.level == "frame":
            raise ValueError("--clap gives a vector per file: leave --level frame out")
        clips = list_clips(args.audio)
        lists = [source for source in args.audio if Path(source).is_file()]
        check_outputs([args.out, table_of(args.out)], [*clips, *lists], args.overwrite)
        device = pick_device(args.device)
        no_tf32()
        if args.weights is None:
            logger.info("embedding with %s, a small encoder (weights/README.md); docs/weights.md lists better ones", DEFAULT)
        runtime = RuntimeM2D(weight_file=args.weights or DEFAULT).to(device)
        if args.compile:
            compile_encoder(runtime, uses_bf16(args.precision, device))
        if args.clap:
            runtime.check_clap()
        left_out = embed(
            clips,
            runtime,
            args.out,
            per_frame=args.level == "frame",
            batch_size=args.batch_size,
            workers=args.workers,
            bf16=uses_bf16(args.precision, device),
            overwrite=args.overwrite,
            clap=args.clap,
        )
        return 1 if left_out else 0

    keep_freed_memory()
    return run_program(work, interrupted="interrupted: the same command continues with what is done")


if __name__ == "__main__":
    sys.exit(main())
