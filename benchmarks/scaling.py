"""Clips/s, memory and bytes reduced per step on 1 to 256 GPUs, from the measured step of one and the links' bandwidth.

    python benchmarks/scaling.py --model m2d_vit_base --batch_size 512 --step_seconds S --memory_gib M
    python benchmarks/scaling.py --check      # the same arithmetic against two processes on this machine (gloo)

A ring reduces 2·(N-1)/N of the gradients' bytes through each GPU's link per update, within a node at one bandwidth, across
nodes at another, per GPU. DDP reduces buckets while the backward pass continues, which is about two thirds of the trained
part of a step: only what does not fit beside it makes a step longer. Targets, teacher and EMA are not communicated.
"""

import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from m2d.models import registry as models_mae
from m2d.models.masking import random_plan
from m2d.train.config import as_pair, size_pair

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Share of a step that the backward pass takes: 2 of 3 of what is trained, and the target encoder's forward beside it.
OVERLAP = 0.5
CHECK_STEPS = 6


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="m2d_vit_base")
    parser.add_argument("--input_size", type=size_pair, default="80x608")
    parser.add_argument("--patch_size", type=size_pair, default="16x16")
    parser.add_argument("--batch_size", type=int, default=512, help="per GPU")
    parser.add_argument("--step_seconds", type=float, help="measured step of one GPU (benchmarks/train_step.py)")
    parser.add_argument("--memory_gib", type=float, default=float("nan"), help="its measured peak memory")
    parser.add_argument("--per_node", type=int, default=8, help="GPUs of a node")
    parser.add_argument("--node_gbs", type=float, default=450.0, help="GB/s per GPU and direction within a node")
    parser.add_argument("--network_gbs", type=float, default=50.0, help="GB/s per GPU and direction between nodes")
    parser.add_argument("--check", action="store_true", help="compare with two processes here")
    return parser.parse_args()


def reduced_bytes(gradient_bytes: int, processes: int) -> float:
    """Bytes that each process sends per update in a ring."""
    return 2 * (processes - 1) / processes * gradient_bytes


def step_seconds(alone: float, gradient_bytes: int, processes: int, bytes_per_second: float, overlap: float) -> float:
    """A step's length: what of the reduction does not fit beside the backward pass comes on top."""
    reduction = reduced_bytes(gradient_bytes, processes) / bytes_per_second if processes > 1 else 0.0
    return alone + max(0.0, reduction - overlap * alone)


def build(args: argparse.Namespace) -> torch.nn.Module:
    """The model of the settings."""
    return models_mae.build(args.model, img_size=as_pair(args.input_size), patch_size=as_pair(args.patch_size))


def gradient_bytes(model: torch.nn.Module) -> int:
    """Bytes of the gradients, float32."""
    return sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)


def print_table(args: argparse.Namespace) -> None:
    """One row for each number of GPUs."""
    size = gradient_bytes(build(args))
    print(f"{args.model}: gradients {size / 1e6:.0f} MB; one GPU: {args.step_seconds:.3f} s a step of {args.batch_size} clips")
    print(f"{'GPUs':>5} {'clips/s':>10} {'of linear':>9} {'GB reduced/step':>16} {'GiB a GPU':>10}")
    for gpus in GPUS:
        link = args.node_gbs if gpus <= args.per_node else args.network_gbs
        seconds = step_seconds(args.step_seconds, size, gpus, link * 1e9, OVERLAP)
        rate, efficiency = gpus * args.batch_size / seconds, args.step_seconds / seconds
        print(f"{gpus:5} {rate:10.0f} {efficiency:9.1%} {reduced_bytes(size, gpus) / 1e9:16.2f} {args.memory_gib:10.1f}")


def measure_rank(rank: int, args: argparse.Namespace, results) -> None:
    """Medians on two processes: the step alone, the reduction alone, the step with DDP."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ["CHECK_PORT"])
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = build(args)
    rows, columns = model.grid_size()
    x = torch.randn(args.batch_size, 1, *as_pair(args.input_size))
    plan = random_plan(torch.rand(args.batch_size, rows * columns), 0.7)
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    gradients = torch.randn(gradient_bytes(model) // 4)

    def median(work) -> float:
        times = []
        for _ in range(CHECK_STEPS):
            dist.barrier()
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[1:])

    def alone() -> None:
        with parallel.no_sync():
            parallel(x, plan)[0].backward()

    figures = [median(alone), median(lambda: dist.all_reduce(gradients)), median(lambda: parallel(x, plan)[0].backward())]
    if rank == 0:
        results.put((*figures, gradients.numel() * 4))
    dist.destroy_process_group()


def check(args: argparse.Namespace) -> None:
    """The prediction for two processes here, and what they take."""
    os.environ.setdefault("CHECK_PORT", "29731")
    results = mp.get_context("spawn").SimpleQueue()
    mp.spawn(measure_rank, (args, results), nprocs=2)
    alone, reduction, together, size = results.get()
    bandwidth = reduced_bytes(size, 2) / reduction
    # On CPUs computing and reducing share the cores: nothing overlaps.
    predicted = step_seconds(alone, size, 2, bandwidth, overlap=0.0)
    print(f"{args.model}, batch {args.batch_size} a process, gradients {size / 1e6:.0f} MB, gloo at {bandwidth / 1e9:.2f} GB/s")
    print(f"step alone {alone:.3f} s, reduction {reduction:.3f} s: predicted {predicted:.3f} s, measured {together:.3f} s")
    print(f"measured / predicted: {together / predicted:.2f}")


def main() -> None:
    """Print the table, or the check."""
    args = parse()
    if args.check:
        check(args)
    elif args.step_seconds is None:
        raise SystemExit("--step_seconds is needed: measure it with benchmarks/train_step.py")
    else:
        print_table(args)


if __name__ == "__main__":
    main()
