"""Linear layers by oneDNN against PyTorch's own, in the shapes of a training step on a CPU: GFLOP/s.

    python -m benchmarks.linear

Both take turns; the figures are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from m2d.models.transformer.onednn import linear
from m2d.utils.malloc import keep_freed_memory

#: Tokens of 16 clips, input width, output width: m2d_vit_base, 80x208, 16x16, mask 0.7.
SHAPES = {
    "online encoder, qkv": (336, 768, 2304),
    "online encoder, attention's output": (336, 768, 768),
    "online encoder, first of the MLP": (336, 768, 3072),
    "online encoder, second of the MLP": (336, 3072, 768),
    "target encoder, qkv": (736, 768, 2304),
    "target encoder, first of the MLP": (736, 768, 3072),
    "target encoder, second of the MLP": (736, 3072, 768),
    "predictor, qkv": (1056, 512, 1536),
    "predictor, first of the MLP": (1056, 512, 2048),
    "predictor, second of the MLP": (1056, 2048, 512),
}
WANTED = {"forward": (), "gradient of the input": (0,), "gradient of the weight": (1,)}


def make_call(layer: Callable, tensors: list[torch.Tensor], wanted: tuple[int, ...]) -> Callable[[], object]:
    """A layer's forward, or one of its gradients alone."""
    if not wanted:
        return lambda: layer(*tensors)
    inputs = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    output = layer(*inputs)
    grad = torch.randn_like(output)
    return lambda: torch.autograd.grad(output, [inputs[i] for i in wanted], grad, retain_graph=True)


def measure(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each, taking turns."""
    seconds = [[] for _ in calls]
    for _ in range(repeats):
        for call, found in zip(calls, seconds, strict=True):
            begin = time.perf_counter()
            call()
            found.append(time.perf_counter() - begin)
    return [statistics.median(found) for found in seconds]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    args = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; GFLOP/s of PyTorch's own, of ours")
    print(f"{'layer':36}" + "".join(f"{name:>26}" for name in WANTED))
    for name, (tokens, width, out) in SHAPES.items():
        tensors = [torch.randn(size) for size in ((tokens, width), (out, width), (out,))]
        figures = []
        for wanted in WANTED.values():
            calls = [make_call(layer, tensors, wanted) for layer in (F.linear, linear)]
            figures += [2e-9 * tokens * width * out / seconds for seconds in measure(calls, args.repeats)]
        print(f"{name:36}" + "".join(f"{a:19.0f}, {b:5.0f}" for a, b in zip(figures[::2], figures[1::2], strict=True)))


if __name__ == "__main__":
    main()
