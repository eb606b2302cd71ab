"""What a run has learned, as one picture and a line each: the loss, the mask over a spectrogram, a linear probe."""

from pathlib import Path

import matplotlib
import numpy as np

from ..audio.logmel import FrontEnd
from ..utils.atomic_file import write_figure
from ..utils.errors import UserError
from . import learned
from .build import axes_of, front_end_of
from .clips import Seen
from .look import Look
from .media import COLOURS, value_range

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

INK, ACCENT, MUTED = "#222222", "#c0392b", "#9aa5b1"


def show(look: Look, out: Path, program: str) -> dict[str, float]:
    """Write the picture, print the lines, and return the probe's accuracies by name (empty: the clips have no classes).

    Raises:
        OSError, ValueError: there is nothing to draw, or a file cannot be written.
    """
    losses = [(row["epoch"], row["train_loss"]) for row in look.run.epochs if "train_loss" in row]
    if losses:
        print(f"loss: {losses[0][1]:.4f} after the first epoch, {losses[-1][1]:.4f} after the last of {len(losses)}")
    samples = look.samples(1)
    judgements, classes = _probe(look)
    for line in learned.verdict(judgements):
        print(line)
    accuracies = {what: judgement.figures[learned.ACCURACY][0] for what, judgement in judgements.items()}
    for note in look.notes:
        print(note)
    if not (losses or samples or accuracies):
        raise UserError(f"{look.run.folder}: nothing to draw: no epoch has ended, and its clips cannot be read")

    figure = plt.figure(figsize=(12, 6.5), layout="constrained")
    figure.suptitle(look.run.name, fontsize=10, color=MUTED)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.3))[0]
    axes = left.subplots(2 if accuracies else 1, 1, squeeze=False)[:, 0]
    draw_losses(axes[0], losses)
    if accuracies:
        draw_probe(axes[1], accuracies, chance=1 / classes)
    if samples:
        draw_mask(right.subplots(2, 1, sharex=True), samples[0], look.settings.model.patch_shape, front_end_of(look))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_figure(out, figure, program, dpi=110)
    plt.close(figure)
    print(f"picture: {out}")
    return accuracies


def _probe(look: Look) -> tuple[dict, int]:
    """Judgements of linear probes where the clips have classes, and how many classes there are."""
    if look.runtime is None or look.clips is None:
        return {}, 0
    most = learned.affordable_clips(look.runtime, look.frames)
    rows, classes = learned.sample(look.clips.names, look.clips.labels, most)
    if classes is None:
        return {}, 0
    crops, kept = look.clips.beginnings(rows, look.frames)
    if len(kept) < len(rows):
        raise UserError(f"{len(rows) - len(kept)} of the {len(rows)} clips to probe with cannot be read: see above")
    return learned.judge(classes, learned.compared_features(look.runtime, crops)), len(classes.classes)


def draw_losses(axes: Axes, losses: list[tuple[float, float]]) -> None:
    """The loss by epoch."""
    axes.set(title="What training minimises", xlabel="epoch", ylabel="loss")
    axes.grid(color=MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if not losses:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no epoch has ended yet", ha="center", transform=axes.transAxes, color=MUTED)
        return
    axes.plot(*zip(*losses, strict=True), color=ACCENT, marker="o" if len(losses) < 10 else None, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(losses) == 1:
        axes.set(xlim=(0, 2 * losses[0][0]), ylim=(0, 1.5 * losses[0][1]))


def draw_probe(axes: Axes, accuracies: dict[str, float], chance: float) -> None:
    """Bars of accuracies, with a line at chance."""
    percent = 100 * np.array(list(accuracies.values()))
    bars = axes.barh([what.replace(", ", ",\n").replace(" of ", "\nof ") for what in accuracies], percent, height=0.6)
    for bar, colour in zip(bars, (ACCENT, MUTED, MUTED), strict=True):
        bar.set_color(colour)
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.axvline(100 * chance, color=INK, linestyle=":", label="chance")
    axes.invert_yaxis()
    axes.set(title="What a linear classifier reads from it", xlabel="held-out clips named correctly (%)", xlim=(0, 115))
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes.spines[["top", "right"]].set_visible(False)


def draw_mask(axes: np.ndarray, sample: Seen, patch: tuple[int, int], front_end: FrontEnd) -> None:
    """A sample, and what is left of it for the online encoder to see."""
    (height, width), clip = patch, sample.clip
    hidden = sample.hidden.repeat(height, axis=0).repeat(width, axis=1)
    clip = clip[: hidden.shape[0], : hidden.shape[1]]
    extent = (0, clip.shape[1] * front_end.hop_size / front_end.sample_rate, 0, 1)
    low, high = value_range(clip)
    titles = (Path(sample.name).name, f"What the encoder sees of it in one step: {1 - hidden.mean():.0%}")
    for ax, title, picture in zip(axes, titles, (clip, np.ma.masked_where(hidden, clip)), strict=True):
        ax.set_facecolor("#e4e7eb")
        ax.imshow(picture, origin="lower", aspect="auto", extent=extent, cmap=COLOURS, vmin=low, vmax=high)
        texts, places = zip(*axes_of(front_end), strict=True)
        ax.set_yticks(places, texts)
        ax.set(title=title, ylabel="frequency (kHz)")
    axes[-1].set_xlabel("time (s)")
