"""What encoding asks of a GPU, counted without one: operations other than views, and the bytes of their inputs and outputs.

    python -m benchmarks.embedding_traffic                # m2d_vit_base 80x608 16x16, 32 clips of 10 s
    python -m benchmarks.embedding_traffic --operations   # and each kind of operation

Shapes alone are computed, under autocast to bfloat16, from normalised spectrograms to features. A GPU may find an operation's
inputs in its cache, so the bytes divided by its memory's speed are no bound.
"""

import argparse
from collections import Counter, defaultdict
from unittest import mock

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.traffic import kernels_of_cuda
from m2d.inference.runtime import RuntimeM2D
from m2d.models import half_encoder
from m2d.models.transformer import add_norm


class Traffic(TorchDispatchMode):
    """Counts operations and their bytes, by name."""

    def __init__(self):
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes: dict[str, int] = defaultdict(int)
        self.counts = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        writes = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
        is_view = any(result.alias_info for result in func._schema.returns) and not writes
        if self.counts and not is_view and func.namespace in ("aten", "m2d"):
            self.count(func._schema.name.partition("::")[2], (args, kwargs, found))
        return found

    def count(self, name: str, tensors: object) -> None:
        """Count an operation with these inputs and outputs."""
        self.operations[name] += 1
        stored = {id(x): x for x in tree_leaves(tensors) if isinstance(x, torch.Tensor)}
        self.bytes[name] += sum(min(x.numel() * x.itemsize, x.untyped_storage().nbytes()) for x in stored.values())

    def add_norm(self, x: torch.Tensor, more: torch.Tensor, norm: torch.nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
        """In place of our kernel: one operation."""
        self.counts = False
        found = torch.empty_like(x), torch.empty_like(more)
        self.counts = True
        self.count("add_norm", (x, more, norm.weight, norm.bias, found))
        return found


def encoded(runtime: RuntimeM2D, clips: int, frames: int, half: bool, in_one_pass: bool) -> Traffic:
    """Traffic of a batch after the first: with weights cast once or each time, sums and norms by our kernel or torch's."""
    traffic = Traffic()
    runtime.use_half_encoder(half)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        kernels_of_cuda(),
        mock.patch.object(half_encoder, "kernels_run", lambda _: in_one_pass),
        mock.patch.object(add_norm, "add_norm", traffic.add_norm),
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
    ):
        lms = torch.empty(clips, 1, 80, frames)
        runtime.encode_lms(lms[:1])
        traffic.operations.clear()
        traffic.bytes.clear()
        torch.clear_autocast_cache()  # casts of weights, which each context does again
        with traffic:
            runtime.encode_lms(lms)
    return traffic


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--frames", type=int, default=1001)
    parser.add_argument("--operations", action="store_true", help="each kind of operation")
    args = parser.parse_args()
    runtime = RuntimeM2D(weight_file="m2d_vit_base-80x608p16x16-random")
    runtime.backbone.use_short_attention()
    ways = {"autocast alone": (False, False), "weights cast once": (True, False), "and sums and norms in one pass": (True, True)}
    print(f"| {args.clips} clips of {args.frames} frames | operations | GB |")
    print("|:--|--:|--:|")
    for name, way in ways.items():
        traffic = encoded(runtime, args.clips, args.frames, *way)
        print(f"| {name} | {traffic.operations.total()} | {sum(traffic.bytes.values()) / 1e9:.1f} |")
        for operation, count in traffic.operations.most_common() if args.operations else ():
            print(f"|   {operation} | {count} | {traffic.bytes[operation] / 1e9:.2f} |")


if __name__ == "__main__":
    main()
