"""Embedding clips with RuntimeM2D against a plain float32 runtime in the same run: clips/s.

    python -m benchmarks.embedding --device cpu --batch_size 32 --steps 3
    python -m benchmarks.embedding --device cuda --batch_size 32 --bf16 --compile --steps 20

The plain one is written the obvious way: nnAudio's log-mel, the input cut into the model's length and encoded piece by piece,
PyTorch's own linear layers, attention as two products and a softmax, all in float32, freed memory given back as the C library
does by itself. Ours is as `m2d embed` has it, in bfloat16 also with one thing after the other left out. On CUDA both run in true
float32 and with TF32 products. All embed the same clips of noise with the same random weights, in rounds; the figures are medians
of rounds on the clock, and the largest difference of the embeddings from the plain ones, relative to the largest value.
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
from m2d.models.transformer.block import Block
from m2d.models.transformer.kernels import kernels_run
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
    parser.add_argument("--bf16", action="store_true", help="also ours under autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="also ours with its encoder compiled, in bfloat16 with --bf16")
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


def our_runtime(
    args: argparse.Namespace,
    bf16: bool = False,
    short: bool = False,
    half: bool = False,
    add_norm: bool = True,
    compiled: bool = False,
) -> Embed:
    """RuntimeM2D as it is, or in bfloat16; with attention by our kernels, with `HalfEncoder` and its kernel, compiled."""
    runtime = load(args)
    runtime.backbone.use_short_attention(short)
    runtime.backbone.compile_inference(compiled)
    runtime.use_half_encoder(half)
    if not add_norm:
        for block in runtime.backbone.blocks:
            block.inference_code = Block._from_pair

    def embed(audio: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=bf16):
            return runtime.encode(audio)

    return embed


def with_tf32(embed: Embed, on: bool) -> Embed:
    """The same with float32 products of matrices by TF32, or without."""

    def call(audio: torch.Tensor) -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
        return embed(audio)

    return call


def all_ways(args: argparse.Namespace) -> dict[str, Embed]:
    """The ways to compare, the plain one first."""
    plain, ours = plain_runtime(args), our_runtime(args)
    ways = {"plain": with_tf32(plain, False), "ours": with_tf32(ours, False)}
    if torch.device(args.device).type == "cuda":
        ways |= {"plain, TF32": with_tf32(plain, True), "ours, TF32": with_tf32(ours, True)}
    if args.bf16:
        short = kernels_run(torch.device(args.device))
        ways["ours, bfloat16"] = with_tf32(our_runtime(args, bf16=True, short=short, half=True), True)
        ways["the same, torch's attention"] = with_tf32(our_runtime(args, bf16=True, half=True), True)
        if short:
            apart = our_runtime(args, bf16=True, short=short, half=True, add_norm=False)
            ways["the same, sums and norms one by one"] = with_tf32(apart, True)
        ways["the same, weights cast and kernels launched each time"] = with_tf32(our_runtime(args, bf16=True, short=short), True)
    return ways


def compiled_ways(args: argparse.Namespace) -> dict[str, Embed]:
    """Ours compiled, as far as it is asked for."""
    if not args.compile:
        return {}
    short = args.bf16 and kernels_run(torch.device(args.device))
    compiled = our_runtime(args, args.bf16, short=short, half=args.bf16, compiled=True)
    return {"ours, compiled, bfloat16" if args.bf16 else "ours, compiled": with_tf32(compiled, True)}


def measure(ways: dict[str, Embed], audio: torch.Tensor, args: argparse.Namespace) -> dict[str, float]:
    """Seconds a batch of each way, medians over rounds in which they take turns."""
    for name, way in ways.items():
        begin = time.perf_counter()
        way(audio)
        compute.synchronize(audio.device)
        print(f"{name}: first batch in {time.perf_counter() - begin:.1f} s", flush=True)
    times = {name: [] for name in ways}
    for name, way in [*ways.items()] * args.rounds:
        keep_freed_memory(*(OWN_LIMITS if name == "plain" else []))
        for _ in range(args.warmup):
            way(audio)
        compute.synchronize(audio.device)
        begin = time.perf_counter()
        for _ in range(args.steps):
            way(audio)
        compute.synchronize(audio.device)
        times[name].append((time.perf_counter() - begin) / args.steps)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def main() -> None:
    """Measure and print a table: compiled ways last, so that a time limit costs no others."""
    args = parse()
    device = torch.device(args.device)
    audio = torch.rand(args.batch_size, int(args.seconds * 16000), device=device) - 0.5
    clips = f"{args.batch_size} clips of {args.seconds:g} s"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; {clips}")
    plain = None
    for ways in (all_ways(args), compiled_ways(args)):
        for name, seconds in measure(ways, audio, args).items():
            found = ways[name](audio).float()
            plain = plain or (seconds, found)
            away = ((found - plain[1]).abs().max() / plain[1].abs().max()).item()
            print(
                f"| embedding by {args.weights}, {name} | {seconds * 1000:.1f} ms a batch "
                f"| {args.batch_size / seconds:.1f} clips/s | {plain[0] / seconds:.2f} | {away:.0e} from plain |",
                flush=True,
            )


if __name__ == "__main__":
    main()
