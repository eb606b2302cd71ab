"""Learning curves: accuracy on each task against clips seen, of what judge.py wrote with --seen and --curve.

python benchmarks/draw_learning.py judged.jsonl docs/images/learning.png
"""

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

TICKS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000)
COLOURS = ("#00897b", "#c0392b", "#3949ab", "#8e44ad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("judged", type=Path, help="JSON lines of judge.py")
    parser.add_argument("out", type=Path, help="the picture to write")
    parser.add_argument("--features", default="last, mean and deviation", help="which of judge.py's features")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.judged.read_text().splitlines()]
    draw([row for row in rows if row["features"] == args.features]).savefig(args.out, dpi=110)


def draw(rows: list[dict]) -> Figure:
    """A panel for each task: the curves with their intervals, and the baselines as lines."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(3 * len(tasks), 3.4), layout="constrained")
    axes = figure.subplots(1, len(tasks), squeeze=False)[0]
    for axis, task in zip(axes, tasks, strict=True):
        draw_task(axis, [row for row in rows if row["task"] == task])
        axis.set_title(task)
    axes[0].set_ylabel("accuracy on held-out groups")
    figure.supxlabel("clips seen")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_task(axis: Axes, rows: list[dict]) -> None:
    for colour, curve in zip(COLOURS, dict.fromkeys(row["curve"] for row in rows), strict=False):
        points = sorted((row["seen"], *row["accuracy"]) for row in rows if row["curve"] == curve)
        seen, value, low, high = zip(*points, strict=True)
        axis.plot(seen, value, "o-", color=colour, label=curve)
        axis.fill_between(seen, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.axhline(rows[0]["untrained"], color="#546e7a", linestyle="--", label="untrained")
    axis.axhline(rows[0]["logmel"], color="#90a4ae", linestyle=":", label="log-mel, mean and deviation")
    axis.set_xscale("log")
    axis.minorticks_off()
    least, most = (pick(row["seen"] for row in rows) for pick in (min, max))
    ticks = [clips for clips in TICKS if 0.8 * least <= clips <= 1.25 * most]
    axis.set_xticks(ticks, [f"{clips // 1000}k" for clips in ticks])
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
