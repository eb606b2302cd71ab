"""Accuracies of several runs of clap.py, all sounds of all folds together, with chance and intervals.

    python benchmarks/clap_folds.py OUT/* --plot unread.png --map map.png

Each OUT has the judged.npz of a run. Heard names are told apart among all of a task that the run read, unread ones among those
that it did not read. Intervals (95 %) are bootstrapped over names: sounds of one name are no independent observations.
--plot draws the accuracy of each unread name, --map sounds and names of the first run.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import pyplot
from sklearn.manifold import TSNE

DRAWS = 10_000


class Judged(NamedTuple):
    """Sounds of a task in a run, whose names were either read or not."""

    task: str
    is_unread: bool
    own: np.ndarray  # the name of each sound [N], text
    right: np.ndarray  # the nearest name is its own [N]
    among_three: np.ndarray  # one of the three nearest is [N]
    chance: np.ndarray  # 1 / names to choose from [N]
    place: np.ndarray  # of its own name among all of the task, 0 nearest to 1 farthest [N]


def read(path: Path) -> Iterator[Judged]:
    """What a run's judged.npz tells of each of its tasks."""
    with np.load(path) as file:
        cosines, own, task = file["cosines"].astype(np.float32), file["own"], file["task"]
        names, unread = file["names"], file["unread"]
    for each in dict.fromkeys(task.tolist()):
        here = task == each
        known = np.unique(own[here])
        for is_unread in (False, True):
            rows = np.flatnonzero(here & (unread[own] == is_unread))
            columns = known[unread[known] == is_unread]
            if len(rows) and len(columns) > 1:
                order = columns[np.argsort(-cosines[np.ix_(rows, columns)], axis=1, kind="stable")]
                right = order == own[rows, None]
                nearer = (cosines[np.ix_(rows, known)] > cosines[rows, own[rows]][:, None]).sum(axis=1)
                yield Judged(
                    each,
                    is_unread,
                    names[own[rows]],
                    right[:, 0],
                    right[:, :3].any(axis=1),
                    np.full(len(rows), 1 / len(columns)),
                    nearer / (len(known) - 1),
                )


def joined(parts: Sequence[Judged]) -> Judged:
    """Several runs as one."""
    columns = [np.concatenate(column) for column in zip(*(part[2:] for part in parts), strict=True)]
    return Judged(parts[0].task, parts[0].is_unread, *columns)


def interval(values: np.ndarray, names: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a mean `[N]`, by drawing names with all their sounds."""
    _, which = np.unique(names, return_inverse=True)
    sums, counts = np.bincount(which, values), np.bincount(which)
    drawn = np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)


def line(judged: Judged) -> str:
    """A row of the table."""
    low, high = interval(judged.right, judged.own)
    return (
        f"| {judged.task} | {'unread' if judged.is_unread else 'read'} | {len(judged.own)} | {len(np.unique(judged.own))} "
        f"| {judged.chance.mean():.3f} | {judged.right.mean():.3f} ({low:.3f} to {high:.3f}) | {judged.among_three.mean():.3f} "
        f"| {np.median(judged.place):.3f} |"
    )


def draw_names(judged: Judged, path: Path) -> None:
    """The accuracy of each unread name."""
    names = np.unique(judged.own)
    values = np.array([judged.right[judged.own == name].mean() for name in names])
    order = np.argsort(-values, kind="stable")
    figure, axes = pyplot.subplots(figsize=(0.17 * len(names) + 1.5, 3.6), layout="constrained")
    axes.bar(names[order], values[order], color="C0")
    axes.axhline(judged.chance.mean(), color="black", linestyle="--", label=f"chance {judged.chance.mean():.3f}")
    axes.axhline(judged.right.mean(), color="C1", label=f"mean {judged.right.mean():.3f}")
    axes.tick_params(axis="x", rotation=90, labelsize=7)
    axes.set(ylabel="accuracy", title="Names that no caption had: sounds given their own", xlim=(-1, len(names)))
    axes.legend()
    figure.savefig(path, dpi=100)


def draw_map(run: Path, task: str, path: Path) -> None:
    """Sounds (points) and names (crosses) of unread names in a plane, by t-SNE of cosines; each side has its own centre."""
    with np.load(run) as file:
        rows = np.flatnonzero((file["task"] == task) & file["unread"][file["own"]])
        own, texts, names = file["own"][rows], file["texts"].astype(np.float32), file["names"]
        sounds = file["vectors"][rows].astype(np.float32)
    shown = np.unique(own)
    sides = [side - side.mean(axis=0) for side in (sounds, texts[shown])]
    both = np.concatenate([side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides])
    places = TSNE(perplexity=12, metric="cosine", init="random", random_state=0).fit_transform(both)
    figure, axes = pyplot.subplots(figsize=(8, 6.5), layout="constrained")
    for n, name in enumerate(shown):
        colour = pyplot.get_cmap("tab20")(n % 20)
        axes.scatter(*places[: len(sounds)][own == name].T, color=colour, s=24)
        x, y = places[len(sounds) + n]
        axes.scatter(x, y, color=colour, marker="x", s=120, linewidths=3)
        axes.annotate(names[name], (x, y), xytext=(5, 5), textcoords="offset points", fontsize=9)
    axes.set(xticks=[], yticks=[], title="Instruments whose names no caption had: sounds (points), names (crosses)")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="OUT")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--map", type=Path, metavar="FILE.png")
    parser.add_argument("--task", default="instruments", help="what --plot and --map draw")
    args = parser.parse_args()
    found: dict[tuple[str, bool], list[Judged]] = {}
    for run in args.runs:
        for judged in read(run / "judged.npz"):
            found.setdefault((judged.task, judged.is_unread), []).append(judged)
    print("| task | names | sounds | names | by chance | accuracy (95 %) | among the first three | place of its own |")
    print("|:--|:--|--:|--:|--:|--:|--:|--:|")
    for key in sorted(found):
        print(line(joined(found[key])))
    if args.plot:
        draw_names(joined(found[args.task, True]), args.plot)
    if args.map:
        draw_map(args.runs[0] / "judged.npz", args.task, args.map)


if __name__ == "__main__":
    main()
