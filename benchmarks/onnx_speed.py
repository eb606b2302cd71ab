"""Embedding by onnxruntime beside PyTorch: CPU time and difference.

    OMP_NUM_THREADS=1 python benchmarks/onnx_speed.py

A ViT-Base of random weights is exported in float32 and float16. PyTorch and both files compute each shape in turns; the ratio is
that of the medians, and the difference that of the clip embeddings, relative to their largest value.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from m2d.checkpoint.weights import read_weights
from m2d.inference.runtime import RuntimeM2D
from m2d.models import registry
from m2d.share.onnx_file import export_onnx, open_session

NAME = "m2d_vit_base-80x608p16x16-random"
SHAPES = ((1, 1.0), (1, 6.0), (1, 6.08), (1, 10.0))  # clips, seconds of each: 6.08 s are a frame more than the input


def seconds_of(work: Callable[[], object]) -> float:
    """CPU seconds of all threads that a call takes: what other programs do at the same time disturbs them least."""
    start = time.process_time()
    work()
    return time.process_time() - start


def write_models(folder: Path) -> tuple[RuntimeM2D, dict[str, Path]]:
    """A runtime of random weights, and its ONNX files by precision."""
    checkpoint = folder / NAME / "checkpoint-0.pth"
    checkpoint.parent.mkdir()
    torch.manual_seed(0)
    model = registry.build("m2d_vit_base_encoder_only", img_size=(80, 608), patch_size=(16, 16))
    torch.save({"model": model.state_dict()}, checkpoint)
    files = {"float32": folder / "float32.onnx", "float16": folder / "float16.onnx"}
    for precision, file in files.items():
        export_onnx(read_weights(checkpoint), file, None, precision == "float16")
    return RuntimeM2D(weight_file=checkpoint), files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        runtime, files = write_models(Path(name))
        sessions = {precision: open_session(file, args.threads) for precision, file in files.items()}
        sizes = ", ".join(f"{precision} {file.stat().st_size / 1e6:.0f} MB" for precision, file in files.items())
        print(f"ViT-Base, {args.threads} threads, median of {args.rounds} rounds; files: {sizes}")
        for clips, seconds in SHAPES:
            audio = 0.1 * torch.randn(clips, round(seconds * 16000))
            feed = {"waveform": audio.numpy()}
            works = {"torch": lambda audio=audio: runtime.get_scene_embeddings(audio)}
            for precision, session in sessions.items():
                works[precision] = lambda session=session, feed=feed: session.run(["clip_embedding"], feed)
            expected = works["torch"]()
            taken = {who: [] for who in works}
            for _ in range(args.rounds):
                for who, work in works.items():
                    taken[who].append(seconds_of(work))
            median = {who: statistics.median(times) for who, times in taken.items()}
            print(f"{clips} x {seconds:.2f} s: torch {median['torch'] * 1e3:.0f} ms", end="")
            for precision in sessions:
                difference = (torch.from_numpy(works[precision]()[0]) - expected).abs().max() / expected.abs().max()
                ratio = median["torch"] / median[precision]
                print(f"; {precision} {median[precision] * 1e3:.0f} ms ({ratio:.2f}x), difference {difference:.1e}", end="")
            print()


if __name__ == "__main__":
    main()
