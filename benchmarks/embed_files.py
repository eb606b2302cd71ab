"""`m2d embed` on many files against its two halves in the same run: decoding alone, and encoding alone. Files per second.

    python -m benchmarks.embed_files --device cuda --files 4000 --workers 16

The files are WAVs of noise at the model's rate: a few of them, each under many names, so they come from the page cache.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

from m2d.audio.ahead import decode_ahead
from m2d.inference.embed import embed
from m2d.inference.runtime import RuntimeM2D
from m2d.inference.stream import Sink, StreamEncoder, decodes_in_processes, default_workers
from m2d.utils.device import no_tf32


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="m2d_vit_base-80x608p16x16-random", help="a checkpoint, or a name for random ones")
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--distinct", type=int, default=50, help="different files among them")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a file")
    parser.add_argument("--batch_size", type=int, help="pieces encoded at a time; none: as many as the runtime takes at once")
    parser.add_argument("--workers", type=int, default=default_workers(on_cuda=True), help="files decoded at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="encode in bfloat16")
    parser.add_argument("--compile", action="store_true", help="compile the encoder")
    return parser.parse_args()


def make_files(folder: Path, args: argparse.Namespace) -> list[Path]:
    """The files' paths."""
    rng, paths = np.random.default_rng(0), []
    for i in range(args.files):
        path = folder / f"{i:06d}.wav"
        if i < args.distinct:
            soundfile.write(path, rng.normal(0, 0.1, int(args.seconds * 16000)), 16000, subtype="PCM_16")
        else:
            os.link(paths[i % args.distinct], path)
        paths.append(path)
    return paths


class Means(Sink):
    """Takes what m2d embed takes, and leaves it."""

    def condense(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.sum(dim=1, dtype=torch.float64)

    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        pass

    def complete(self, clip: int, samples: int, frames: int) -> None:
        pass


def decode(paths: Sequence[Path], rate: int, workers: int, in_processes: bool) -> None:
    """Decode all files."""
    for clip in decode_ahead(paths, rate, workers, in_processes=in_processes):
        for stretch in clip:
            if isinstance(stretch, Exception):
                raise stretch


def encode(runtime: RuntimeM2D, paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Encode as many clips of one waveform."""
    encoder = StreamEncoder(runtime, args.batch_size, Means(paths))
    audio = [encoder.hold(segment) for segment in encoder.framing([soundfile.read(paths[0], dtype="float32")[0]])]
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16):
        for _ in paths:
            encoder.start()
            for segment in audio:
                encoder.add(segment)
            encoder.end()
        encoder.flush()


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print a row."""
    args = parse()
    no_tf32()
    runtime = RuntimeM2D(weight_file=args.weights).to(args.device)
    runtime.backbone.compile_inference(args.compile)
    runtime.use_fast_code()
    args.batch_size = args.batch_size or runtime.pieces_at_once
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = make_files(folder, args)
        encode(runtime, paths[: 2 * args.batch_size], args)  # loads kernels
        in_processes = decodes_in_processes(runtime, len(paths))
        decoding = timed(lambda: decode(paths, runtime.sample_rate, args.workers, in_processes))
        encoding = timed(lambda: encode(runtime, paths, args))
        out = folder / "embeddings.npz"
        how = dict(batch_size=args.batch_size, workers=args.workers, bf16=args.bf16)
        whole = timed(lambda: embed(paths, runtime, out, **how))
    rates = {"decoding alone": decoding, "encoding alone": encoding, "m2d embed": whole}
    figures = " | ".join(f"{name} {args.files / seconds:.0f}/s" for name, seconds in rates.items())
    share = max(decoding, encoding) / whole
    print(f"| {args.files} WAVs of {args.seconds:g} s, {args.workers} workers | {figures} | {share:.0%} of the slower half |")


if __name__ == "__main__":
    main()
