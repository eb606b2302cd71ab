"""The training step against a plain one in the same run: clips/s, arithmetic, peak memory.

    python -m benchmarks.train_step --device cpu --model m2d_vit_base --input_size 80x208 --batch_size 16
    python -m benchmarks.train_step --device cuda --precision bf16 --batch_size 512 --compile_blocks --short_attention

The plain step is written the obvious way: PyTorch's own linear layers, attention as two products and a softmax, AdamW and
EMA one parameter after the other, all tokens projected, the loss read at every step, freed memory given back. Both see the
same batches, in rounds; the figures are medians, ratios those of a round's. The arithmetic is compared with what a large
matrix product reaches there. With --each, every optimisation is turned off alone. With --gaps, a profile tells for how much of
the step no kernel runs (CUDA).
"""

import argparse
import ast
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.plain_model import without_fused_attention
from m2d.models import registry
from m2d.models.m2d_x import M2D_X_ViT
from m2d.models.masking import MaskPlan, random_plan
from m2d.models.transformer.onednn import use_onednn
from m2d.train import cost
from m2d.train import device as compute
from m2d.train.config import as_pair, size_pair
from m2d.train.graphs import LossesOf, graph_losses
from m2d.utils.malloc import OWN_LIMITS, keep_freed_memory


@dataclass(frozen=True)
class Choices:
    """What a step does the fast way."""

    onednn_products: bool = True
    fused_attention: bool = True
    fused_optimizer: bool = True
    foreach_ema: bool = True
    hidden_tokens_only: bool = True
    losses_stay: bool = True
    memory_stays: bool = True


PLAIN = Choices(*[False] * 7)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings, of the command line or of some words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m2d_vit_base")
    parser.add_argument("--input_size", type=size_pair, default="80x608")
    parser.add_argument("--patch_size", type=size_pair, default="16x16")
    parser.add_argument("--mask_ratio", type=float, default=0.7)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of what autocast covers")
    parser.add_argument("--compile", action="store_true", help="compile the fast step's model")
    parser.add_argument("--compile_blocks", action=argparse.BooleanOptionalAction, default=False, help="compile its blocks alone")
    setting = "with --compile or --compile_blocks: a setting of torch._inductor.config; may be repeated"
    parser.add_argument("--inductor", action="append", default=[], metavar="NAME=VALUE", help=setting)
    parser.add_argument(
        "--short_attention",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the fast step's attention by our Triton kernels",
    )
    parser.add_argument(
        "--recompute_gelu",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the fast step's GELUs once more in the backward pass",
    )
    parser.add_argument("--fp8", action="store_true", help="products of its blocks in float8 (on a CPU: of values rounded to it)")
    parser.add_argument("--half_target", action="store_true", help="the fast step's target encoder with tokens in half precision")
    parser.add_argument("--cuda_graphs", action="store_true", help="the fast step's forward and backward pass as CUDA graphs")
    parser.add_argument("--activation_checkpointing", action="store_true", help="recompute the fast step's activations")
    parser.add_argument("--steps", type=int, default=2, help="of each round")
    parser.add_argument("--warmup", type=int, default=1, help="steps before, in each round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", action="store_true", help="also each optimisation turned off alone")
    parser.add_argument("--gaps", action="store_true", help="also the share of the fast step in which no kernel runs")
    parser.add_argument("--fast_only", action="store_true", help="without the plain step (batches that it has no memory for)")
    return parser.parse_args(words)


class Step:
    """One way of making training steps, with a model of its own."""

    def __init__(self, args: argparse.Namespace, choices: Choices, compiled: bool):
        torch.manual_seed(0)
        self.args, self.choices, self.device = args, choices, torch.device(args.device)
        sizes = dict(img_size=as_pair(args.input_size), patch_size=as_pair(args.patch_size))
        self.model = registry.build(args.model, **sizes).to(self.device).train()
        if not choices.fused_attention:
            without_fused_attention(self.model)
        if compiled and args.fp8:
            self.model.use_float8()
        if choices.onednn_products and self.device.type == "cpu":
            use_onednn(self.model)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        how = dict(fused=True) if choices.fused_optimizer else dict(foreach=False)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, **how)
        self.graphed: LossesOf | None = None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.precision == "fp16")
        self.trained = trained
        if compiled:
            self.model.recompute_activations(args.activation_checkpointing)
            self.model.recompute_gelu(args.recompute_gelu)
            self.model.half_target = args.half_target
            self.model.use_short_attention(args.short_attention)
            if args.compile or args.compile_blocks:
                options = {name: ast.literal_eval(value) for name, value in (each.split("=") for each in args.inductor)}
                compute.compile_in_place(self.model, args.compile_blocks, options or None)

    def forward(self, x: torch.Tensor, target: torch.Tensor | None, plan: MaskPlan) -> torch.Tensor:
        """The loss."""
        arguments = (x, plan) if target is None else (x, target, plan)
        if self.graphed:
            return self.graphed(arguments)["loss"]
        if self.choices.hidden_tokens_only or not self.model.has_ema_target:
            return self.model(*arguments)[0]
        keep = plan.keep
        latent, x_target, _, ids_restore = self.model.forward_encoder(x, plan)
        pred = self.model.project(self.model.decode_tokens(latent, ids_restore))[:, keep + 1 :]
        loss = self.model.forward_loss(self.model.target_of(x_target, ids_restore, keep), pred)
        if target is None:
            return loss
        offline = self.model.offline_loss(self.model.forward_offline(latent, pred, ids_restore), target)
        return self.model.loss_m2d * loss + self.model.loss_off * offline

    def update_target(self) -> None:
        """The EMA step."""
        if not self.model.has_ema_target:
            return
        if self.choices.foreach_ema:
            self.model.update_target_network(0.999)
            return
        with torch.no_grad():
            for part, twin in (("target_blocks", "blocks"), ("target_norm", "norm")):
                pairs = zip(getattr(self.model, part).parameters(), getattr(self.model, twin).parameters(), strict=True)
                for slow, online in pairs:
                    slow.data = slow.data * 0.999 + online.data * (1 - 0.999)

    def autocast(self, cache: bool = True) -> torch.autocast:
        """Its precision."""
        dtype = PRECISIONS[self.args.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=cache)

    def capture(self, x: torch.Tensor, target: torch.Tensor | None, plan: MaskPlan) -> None:
        """Replay CUDA graphs from here on."""
        with self.autocast(cache=False):
            self.graphed = graph_losses(self.model, (x, plan) if target is None else (x, target, plan))

    def __call__(self, x: torch.Tensor, target: torch.Tensor | None, plan: MaskPlan) -> torch.Tensor:
        """One whole step; returns its loss."""
        with self.autocast():
            loss = self.forward(x, target, plan)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.trained, 3.0, foreach=self.choices.fused_optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.update_target()
        if not self.choices.losses_stay:
            loss.item()
        return loss.detach()


def make_batch(step: Step) -> tuple[torch.Tensor, torch.Tensor | None, MaskPlan]:
    """Random inputs of the right shapes."""
    args, model = step.args, step.model
    rows, columns = model.grid_size()
    x = torch.randn(args.batch_size, 1, *as_pair(args.input_size), device=step.device)
    target = None
    if isinstance(model, M2D_X_ViT):
        width = model.offline_predictor.out_features
        labels = "_as_" in args.model
        shape = (args.batch_size, width) if labels else (args.batch_size, columns, width)
        target = torch.randn(shape, device=step.device)
        target = (target > 2).float() if labels else target
    return x, target, random_plan(torch.rand(args.batch_size, rows * columns, device=step.device), args.mask_ratio)


@dataclass
class Measured:
    """What was measured of one way: seconds of its first step (compilation), and of a step by round; peak memory in GiB."""

    first: float
    rounds: list[float]
    memory: float = 0.0

    def seconds(self) -> float:
        """The median round's."""
        return statistics.median(self.rounds)

    def ratio(self, base: "Measured") -> float:
        """How much faster than another way: the median over rounds, since a shared machine's speed changes by the minute."""
        return statistics.median(slow / fast for slow, fast in zip(base.rounds, self.rounds, strict=True))


def timed(step: Step, batch: tuple, steps: int = 1) -> float:
    """Seconds of a step, of several with a single wait at their end, as training has it."""
    begin = time.perf_counter()
    for _ in range(steps):
        step(*batch)
    compute.synchronize(step.device)
    return (time.perf_counter() - begin) / steps


def measure(steps: dict[str, Step], batch: tuple, args: argparse.Namespace) -> dict[str, Measured]:
    """Every way's steps, in rounds."""
    results = {name: Measured(timed(step, batch), []) for name, step in steps.items()}
    for name, step in [*steps.items()] * args.rounds:
        keep_freed_memory(*([] if step.choices.memory_stays else OWN_LIMITS))
        if args.warmup:
            timed(step, batch, args.warmup)
        if step.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() - sum(p.nbytes for p in step.model.parameters()) * 3
        results[name].rounds.append(timed(step, batch, args.steps))
        if step.device.type == "cuda":
            results[name].memory = (torch.cuda.max_memory_allocated() - before) / 2**30
    return results


def idle_share(step: Step, batch: tuple, steps: int = 5) -> float:
    """Share of the time from the first kernel of some steps to their last in which none runs."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            step(*batch)
        compute.synchronize(step.device)
    kernels = sorted((e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == DeviceType.CUDA)
    busy, until = 0.0, kernels[0][0]
    for start, end in kernels:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return 1 - busy / (until - kernels[0][0])


def row(what: str, found: Measured, base: Measured, args: argparse.Namespace, work: float, product: float) -> str:
    """A way's row of the table."""
    rate = args.batch_size / found.seconds()
    return (
        f"| {what} | {found.seconds() * 1000:.1f} ms | {rate:.0f} clips/s | {rate * work / product:.0%} of a product "
        f"| {found.memory:.1f} GiB | first step {found.first:.1f} s | {found.ratio(base):.2f} |"
    )


def main() -> None:
    """Measure and print a table."""
    args = parse()
    device = torch.device(args.device)
    compute.configure(device)
    steps = {} if args.fast_only else {"plain": Step(args, PLAIN, compiled=False)}
    steps["fast"] = Step(args, Choices(), compiled=True)
    if args.each:
        for name in Choices.__dataclass_fields__:
            steps[f"fast without {name}"] = Step(args, replace(Choices(), **{name: False}), compiled=True)
    batch = make_batch(steps["fast"])
    if args.cuda_graphs:
        steps["fast"].capture(*batch)
    results = measure(steps, batch, args)
    work = cost.step_flops(steps["fast"].model, args.mask_ratio)
    product = cost.measured_flops(device, PRECISIONS[args.precision])
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {where}; {work / 1e9:.1f} GFLOP a clip; a large product {product / 1e12:.2f} TFLOP/s")
    sizes = f"{args.model} {args.input_size} {args.patch_size} {args.precision}, batch {args.batch_size}"
    for name, found in results.items():
        print(row(f"{sizes}, {name}", found, next(iter(results.values())), args, work, product))
    if args.gaps and device.type == "cuda":
        print(f"| {sizes}, no kernel runs | {idle_share(steps['fast'], batch):.1%} of the step |")


if __name__ == "__main__":
    main()
