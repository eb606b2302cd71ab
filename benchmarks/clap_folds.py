"""Accuracies of several runs of clap.py, all sounds of all folds together, with chance and intervals.

    python benchmarks/clap_folds.py OUT/* --control OWN/* --plot unread.png --map map.png

Each OUT has the judged.npz of a run. Names that captions had are told apart among all such of a task, unread ones among those
of their fold. Intervals (95 %) are bootstrapped over names: sounds of one name are no independent observations. "Centred" is
the accuracy after each name's mean cosine over the sounds was taken off, so that no name is near to everything.

--control are runs to compare with, over the same folds. --plot draws the accuracy of each unread name, --map sounds and names of
the first run.
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
    names: str  # read, unread, or unread and without a word of a read name
    own: np.ndarray  # the name of each sound [N], text
    right: np.ndarray  # the nearest name is its own [N]
    among_three: np.ndarray  # one of the three nearest is [N]
    centred: np.ndarray  # the nearest is, after the mean cosine of each name was taken off [N]
    chance: np.ndarray  # 1 / names to choose from [N]
    place: np.ndarray  # of its own name among all of the task, 0 nearest to 1 farthest [N]


def read(path: Path) -> Iterator[Judged]:
    """What a run's judged.npz tells of each of its tasks, of names that were read and not, and of those without a read word."""
    with np.load(path) as file:
        cosines, own, task = file["cosines"].astype(np.float32), file["own"], file["task"]
        names, unread = file["names"], file["unread"]
    read_words = {word for name in names[~unread] for word in name.split()}
    is_new = np.array([read_words.isdisjoint(name.split()) for name in names])
    for each in dict.fromkeys(task.tolist()):
        here = task == each
        known = np.unique(own[here])
        for is_unread in (False, True):
            rows = np.flatnonzero(here & (unread[own] == is_unread))
            columns = known[unread[known] == is_unread]
            if len(rows) and len(columns) > 1:
                among = cosines[np.ix_(rows, columns)]
                right = columns[np.argsort(-among, axis=1, kind="stable")] == own[rows, None]
                nearer = (cosines[np.ix_(rows, known)] > cosines[rows, own[rows]][:, None]).sum(axis=1)
                judged = Judged(
                    each,
                    "unread" if is_unread else "read",
                    names[own[rows]],
                    right[:, 0],
                    right[:, :3].any(axis=1),
                    columns[(among - among.mean(axis=0)).argmax(axis=1)] == own[rows],
                    np.full(len(rows), 1 / len(columns)),
                    nearer / (len(known) - 1),
                )
                yield judged
                if is_unread and is_new[own[rows]].any():
                    values = [column[is_new[own[rows]]] for column in judged[2:]]
                    yield Judged(each, "unread, of unread words", *values)


def joined(parts: Sequence[Judged]) -> Judged:
    """Several runs as one."""
    columns = [np.concatenate(column) for column in zip(*(part[2:] for part in parts), strict=True)]
    return Judged(parts[0].task, parts[0].names, *columns)


def means(values: np.ndarray, which: np.ndarray) -> np.ndarray:
    """The mean of values `[N]` in DRAWS drawings of names with all their sounds; `which` `[N]` is the name of each sound."""
    sums, counts = np.bincount(which, values), np.bincount(which)
    drawn = np.random.default_rng(0).integers(0, len(counts), (DRAWS, len(counts)))
    return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)


def interval(drawn: np.ndarray, sign: str = "") -> str:
    """The 95 % interval of drawn values, as text."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"({low:{sign}.3f} to {high:{sign}.3f})"


def line(judged: Judged, control: Judged | None) -> str:
    """A row of the table."""
    names, which = np.unique(judged.own, return_inverse=True)
    drawn = means(judged.right, which)
    cells = [
        f"{judged.task}, {judged.names}",
        f"{len(judged.own)}",
        f"{len(names)}",
        f"{judged.chance.mean():.3f}",
        f"{judged.right.mean():.3f} {interval(drawn)}",
        f"{judged.centred.mean():.3f}",
        f"{judged.among_three.mean():.3f}",
        f"{np.median(judged.place):.2f}",
    ]
    if control is not None:
        there, of_control = np.unique(control.own, return_inverse=True)
        assert there.tolist() == names.tolist(), "the control has other names"
        less = drawn - means(control.right, of_control)  # of the same drawings of names
        cells.append(f"{judged.right.mean() - control.right.mean():+.3f} {interval(less, '+')}")
    return f"| {' | '.join(cells)} |"


def draw_names(judged: Judged, path: Path) -> None:
    """The accuracy of each unread name."""
    names = np.unique(judged.own)
    values = np.array([judged.right[judged.own == name].mean() for name in names])
    order = np.argsort(-values, kind="stable")
    figure, axes = pyplot.subplots(figsize=(max(6.0, 0.17 * len(names) + 1.5), 3.6), layout="constrained")
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


def collected(runs: Sequence[Path]) -> dict[tuple[str, str], Judged]:
    """All sounds of runs, by the task and what names they have."""
    found: dict[tuple[str, str], list[Judged]] = {}
    for run in runs:
        for judged in read(run / "judged.npz"):
            found.setdefault((judged.task, judged.names), []).append(judged)
    return {key: joined(parts) for key, parts in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="OUT")
    parser.add_argument("--control", nargs="+", type=Path, default=[], metavar="OUT")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--map", type=Path, metavar="FILE.png")
    parser.add_argument("--task", default="instruments", help="what --plot and --map draw")
    args = parser.parse_args()
    found, control = collected(args.runs), collected(args.control)
    heads = ["names", "sounds", "names", "by chance", "accuracy (95 %)", "centred", "among the first three", "place of its own"]
    heads += ["more than the control (95 %)"] if control else []
    print(f"| {' | '.join(heads)} |\n|:--|{'--:|' * (len(heads) - 1)}")
    for key, judged in sorted(found.items()):
        print(line(judged, control.get(key)))
    if args.plot:
        draw_names(found[args.task, "unread"], args.plot)
    if args.map:
        draw_map(args.runs[0] / "judged.npz", args.task, args.map)


if __name__ == "__main__":
    main()
