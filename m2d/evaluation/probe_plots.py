"""Pictures of a probe: which classes are confused, and how well each is named."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..utils.atomic_file import write_figure

_MOST_CLASSES = 60  # that a picture can show by name
_INK, _ACCENT, _MUTED = "#222222", "#c0392b", "#9aa5b1"


def confusion(predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """How often clips of each class (row) are called each class (column): `[C, C]`."""
    return np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)


def draw_confusion(path: Path, counts: np.ndarray, classes: list[str], title: str, program: str) -> None:
    """Write the confusion matrix, each row as shares of its class's clips; of many classes the most confused ones.

    Args:
        program: in the picture's metadata.
    """
    counts, classes = _most_confused(counts, classes)
    size = 2.5 + 0.28 * len(classes)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="magma", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=90)
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="called", ylabel="is")
    figure.suptitle(title, wrap=True, fontsize=9)
    if len(classes) <= 20:
        for i, j in np.argwhere(counts > 0):
            colour = "black" if shares[i, j] > 0.6 else "white"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, label="share of the class's clips", shrink=0.8)
    write_figure(path, figure, program, dpi=110)


def _most_confused(counts: np.ndarray, classes: list[str]) -> tuple[np.ndarray, list[str]]:
    wrong = counts.sum(axis=1) - np.diag(counts)
    shown = np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])
    return counts[np.ix_(shown, shown)], [classes[i] for i in shown]


def draw_per_class(path: Path, values: np.ndarray, counts: np.ndarray, classes: list[str], what: str, program: str) -> None:
    """Write a bar for each class, worst first; of many classes the worst.

    Args:
        values: a figure of each class, from 0 to 1.
        counts: clips of each class.
        what: the figure's name.
        program: in the picture's metadata.
    """
    shown = np.argsort(values, kind="stable")[:_MOST_CLASSES]
    figure = Figure(figsize=(7, 1.2 + 0.25 * len(shown)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([f"{classes[i]} ({counts[i]})" for i in shown], 100 * values[shown], color=_ACCENT, height=0.7)
    axes.bar_label(bars, fmt="%.0f", padding=3, color=_INK)
    axes.invert_yaxis()
    more = f", the worst {len(shown)} of {len(classes)}" if len(shown) < len(classes) else ""
    axes.set(xlim=(0, 108), xlabel=f"{what} (%)", title=f"{what} by class (clips){more}")
    axes.grid(axis="x", color=_MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(path, figure, program, dpi=110)
