"""Embedding clips with RuntimeM2D against a plain float32 runtime in the same run: clips/s.

    python -m benchmarks.embedding --device cpu --batch_size 32 --steps 3
    python -m benchmarks.embedding --device cuda --batch_size 32 --bf16 --compile

The plain one is written the obvious way: nnAudio's log-mel, the input cut into the model's length and encoded piece by piece,
PyTorch's own linear layers, attention as two products and a softmax, all in float32, freed memory given back as the C library
does by itself. Ours is as `m2d.embed` has it. Both embed the same clips of noise with the same random weights, in rounds; the
figures are medians on the clock, and the largest difference of their embeddings relative to the largest value.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from einops import rearrange
from torch.nn import functional as F

from benchmarks.plain_model import with_torchs_products, without_fused_attention
from m2d.inference.runtime import RuntimeM2D
from m2d.train import device as compute
from m2d.utils.malloc import OWN_LIMITS, keep_freed_memory

Embed = Callable[[torch.Tensor], torch.Tensor]


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="m2d_vit_base-80x608p16x16-random", help="a checkpoint, or a name for random ones")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="ours under autocast to bfloat16; float32 otherwise")
    parser.add_argument("--compile", action="store_true", help="ours with its encoder compiled")
    parser.add_argument("--steps", type=int, default=5, help="of each round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before, in each round")
    parser.add_argument("--rounds", type=int, default=2)
    return parser.parse_args()


def load(args: argparse.Namespace) -> RuntimeM2D:
    """The same weights each time."""
    torch.manual_seed(0)
    return RuntimeM2D(weight_file=args.weights).to(args.device)


def plain_runtime(args: argparse.Namespace) -> Embed:
    """What one writes first."""
    runtime = load(args)
    without_fused_attention(runtime)
    with_torchs_products(runtime)
    (_, unit), (_, patch) = runtime.backbone.patch_embed.img_size, runtime.backbone.patch_size()
    rows = runtime.backbone.grid_size()[0]

    def embed(audio: torch.Tensor) -> torch.Tensor:
        lms = ((runtime.to_spec(audio) + torch.finfo(torch.float32).eps).log()[:, None] - runtime.cfg.mean) / runtime.cfg.std
        lms = F.pad(lms, (0, -lms.shape[-1] % unit % patch))
        features = []
        for piece in lms.split(unit, dim=-1):
            tokens = runtime.backbone.forward_encoder(piece, 0.0, adjust_short=True)[0][:, 1:]
            features.append(rearrange(tokens, "b (f t) d -> b t (f d)", f=rows))
        return torch.cat(features, dim=1)

    return embed


def our_runtime(args: argparse.Namespace) -> Embed:
    """RuntimeM2D as it is."""
    runtime = load(args)
    if args.compile:
        runtime.backbone.forward_encoder = torch.compile(runtime.backbone.forward_encoder, dynamic=False)

    def embed(audio: torch.Tensor) -> torch.Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            return runtime.encode(audio)

    return embed


@torch.no_grad()
def main() -> None:
    """Measure and print a table."""
    args = parse()
    device = torch.device(args.device)
    compute.configure(device)
    audio = torch.rand(args.batch_size, int(args.seconds * 16000), device=device) - 0.5
    ways = {"plain": plain_runtime(args), "ours": our_runtime(args)}
    expected, found = (way(audio) for way in ways.values())
    times = {name: [] for name in ways}
    for name, way in [*ways.items()] * args.rounds:
        keep_freed_memory(*(OWN_LIMITS if name == "plain" else []))
        for turn in range(args.warmup + args.steps):
            begin = time.perf_counter()
            way(audio)
            compute.synchronize(device)
            if turn >= args.warmup:
                times[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; {args.weights}")
    print(f"{'way':8} {'s/batch':>9} {'clips/s':>9} {'ratio':>6}")
    for name, seconds in medians.items():
        print(f"{name:8} {seconds:9.3f} {args.batch_size / seconds:9.2f} {medians['plain'] / seconds:6.2f}")
    print(f"difference {((found - expected).abs().max() / expected.abs().max()).item():.1e} of the largest value")


if __name__ == "__main__":
    main()
