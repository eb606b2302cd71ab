"""The training step of the published system, from a folder that holds it: clips/s and peak memory.

    python benchmarks/published_step.py FOLDER --device cuda --precision bf16 --batch_size 512

It takes `m2d.models_mae` from FOLDER by its published names: a builder by the model's name, `forward(images, mask_ratio)`, whose
first result is the loss, and `update_target_network(decay)`. AdamW, clipping and the loss that is read at every step are what
its training program does. This file imports nothing of this project.
"""

import argparse
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a clone of the published system")
    parser.add_argument("--model", default="m2d_vit_base")
    parser.add_argument("--input_size", default="80x608")
    parser.add_argument("--patch_size", default="16x16")
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    return parser.parse_args()


def main() -> None:
    """Measure and print a row."""
    args = parse()
    if not (args.folder / "m2d/models_mae.py").exists():
        raise SystemExit(f"{args.folder} does not hold the published system: it has no m2d/models_mae.py")
    sys.path[:0] = [str(args.folder), str(args.folder / "m2d")]
    from m2d import models_mae

    sizes = {name: tuple(map(int, getattr(args, name).split("x"))) for name in ("input_size", "patch_size")}
    build = models_mae.__dict__[args.model]
    model = build(img_size=sizes["input_size"], patch_size=sizes["patch_size"], norm_pix_loss=True).to(args.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "fp16")
    images = torch.randn(args.batch_size, 1, *sizes["input_size"], device=args.device)
    dtype, seconds = PRECISIONS[args.precision], []
    for _ in range(args.warmup + args.steps):
        begin = time.perf_counter()
        with nullcontext() if dtype == torch.float32 else torch.autocast(args.device, dtype):
            loss = model(images, 0.7)[0]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, 3.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        model.update_target_network(0.999)
        loss.item()
        if args.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[args.warmup :])
    memory = torch.cuda.max_memory_allocated() / 2**30 if args.device == "cuda" else 0.0
    what = f"published system: {args.model} {args.input_size} {args.patch_size} {args.precision}, batch {args.batch_size}"
    print(f"| {what} | {median * 1000:.1f} ms | {args.batch_size / median:.0f} clips/s | {memory:.1f} GiB |")


if __name__ == "__main__":
    main()
