"""RankMe and AUC: one Gram matrix against a singular value decomposition, in one run.

From the project's root: OMP_NUM_THREADS=2 python -m benchmarks.label_free [--samples 65520] [--features 768]
"""

import argparse
import time
from collections.abc import Callable

import torch

from m2d.evaluation.label_free import GramAccumulator, get_cumulative_explained_variance_auc, rank_me


def svd(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svd(x, full_matrices=False).S


def svd_rank_me(x: torch.Tensor, singular_values: Callable) -> float:
    s = singular_values(x)
    p = s / s.sum() + torch.finfo(torch.float64).eps
    return torch.exp(-(p * p.log()).sum()).item()


def svd_auc(x: torch.Tensor, singular_values: Callable) -> float:
    x = x / (x.norm(dim=1, keepdim=True) + 1e-6)
    s = singular_values(x - x.mean(dim=0))
    return (s.cumsum(0) / s.sum()).mean().item()


def streamed(x: torch.Tensor) -> tuple[float, float]:
    accumulator = GramAccumulator()
    for batch in x.split(512):
        accumulator.update(batch)
    return accumulator.rank_me(), accumulator.auc()


clock = time.perf_counter


def best_of(repeats: int, function: Callable, *args) -> tuple[float, object]:
    """Shortest time in seconds, and the function's value."""
    times = []
    for _ in range(repeats):
        began = clock()
        value = function(*args)
        times.append(clock() - began)
    return min(times), value


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=65520)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--repeats", type=int, default=3, help="take the best of this many runs")
    parser.add_argument("--cpu_time", action="store_true", help="of all threads, where other programs disturb the clock")
    args = parser.parse_args()
    if args.cpu_time:
        clock = time.process_time

    # Singular values that fall over three decades and a common offset, as features of a network have them.
    x = torch.randn(args.samples, args.features, generator=torch.Generator().manual_seed(0))
    x = x * torch.logspace(0, -3, args.features) + 0.1
    print(
        f"{args.samples} x {args.features} float32, {torch.get_num_threads()} threads, {clock.__name__}, best of {args.repeats}"
    )
    for name, ours, plain in (("RankMe", rank_me, svd_rank_me), ("AUC", get_cumulative_explained_variance_auc, svd_auc)):
        seconds, value = best_of(args.repeats, ours, x)
        svd_seconds, svd_value = best_of(args.repeats, plain, x, svd)
        values_seconds, _ = best_of(args.repeats, plain, x, torch.linalg.svdvals)
        exact = plain(x.double(), torch.linalg.svdvals)
        print(f"{name:6s}  Gram {seconds:.2f} s, svd {svd_seconds:.2f} s ({svd_seconds / seconds:.1f}x),", end=" ")
        print(f"its values alone {values_seconds:.2f} s ({values_seconds / seconds:.1f}x);", end=" ")
        print(f"value {value:.6f}, svd {svd_value:.6f}, float64 svd {exact:.6f}")
    seconds, _ = best_of(args.repeats, streamed, x)
    print(f"both figures, streamed in batches of 512: {seconds:.2f} s")


if __name__ == "__main__":
    main()
