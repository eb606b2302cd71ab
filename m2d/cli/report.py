"""What a pre-training run has learned, as one picture and a line each.

    m2d report RUN_FOLDER --data_path data --csv data/files.csv --out picture.png

shows the loss, the mask over a spectrogram, and, where the clips' folders name their classes, a linear probe of the
trained encoder against the same encoder untrained and against mean and deviation of the log-mel. The probe takes about a
minute, of as many clips as that allows; `m2d probe` judges with all of them, and holds out whole groups of clips.
"""

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

from ..audio.logmel import PRESETS, FrontEnd, mel_filters
from ..checkpoint.weights import checkpoints_in, load_file
from ..data.clip_list import read_list
from ..evaluation.features import EncoderFeatures, FeatureSource, LogMelFeatures, clip_features, untrained
from ..evaluation.labelled_clips import LabelledClips
from ..evaluation.probe import Judgement, Protocol
from ..inference.runtime import RuntimeM2D
from ..utils.atomic_file import write_figure
from ..utils.device import pick_device
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

logger = logging.getLogger("m2d")

_PROGRAM = "m2d report"  # in the picture's metadata
PROBE_CLIPS = 1000
CLIPS_PER_CLASS = 12
FOLDS = 4
ENCODING_FLOPS = 2e12  # about half a minute of two cores; fitting takes less
POOLING = "mean"  # what m2d embed gives for a clip
ACCURACY = "linear/accuracy"
TRAINED, UNTRAINED, LOGMEL = "trained encoder", "same encoder, untrained", "mean and deviation of the log-mel"
NEXT_STEP = (
    "So far training has gained nothing certain for these classes. What to do next: judge released weights on the same sounds "
    "(m2d probe AUDIO_FOLDER --weights CKPT; docs/weights.md), or train for longer on more audio (docs/learning.md)."
)
INK, ACCENT, MUTED = "#222222", "#c0392b", "#9aa5b1"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)

    def work() -> None:
        check_outputs([args.out], [args.csv], args.overwrite, lambda path: drawn_by(path, _PROGRAM))
        show(args.run, args.data_path, args.csv, args.out)

    return run_program(work)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="the run's output folder")
    parser.add_argument("--data_path", type=Path, default=Path("data"), help="the folder that the list's names start from")
    parser.add_argument("--csv", type=Path, required=True, help="the list of clips to probe with")
    parser.add_argument("--out", type=Path, required=True, help="the picture to write (.png, .pdf, .svg)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    return parser.parse_args(argv)


def show(run: Path, data_path: Path, csv: Path, out: Path) -> dict[str, float]:
    """Write the picture, print the lines, and return the probe's accuracies by name (empty: the clips have no classes).

    Raises:
        FileNotFoundError, ValueError: the run has no checkpoint, or a file is missing or unfit.
    """
    checkpoints = checkpoints_in(run)
    if not checkpoints:
        raise FileNotFoundError(f"{run} holds no checkpoint-N.pth: has the run ended?")
    names = list(read_list(csv).names)
    losses = read_losses(run / "log.txt")
    print(f"loss: {losses[0][1]:.4f} after the first epoch, {losses[-1][1]:.4f} after the last of {len(losses)}")
    trained = RuntimeM2D(weight_file=checkpoints[-1]).to(pick_device("auto")).eval()
    clips = labelled_clips(data_path, names, affordable_clips(trained, [data_path / name for name in names]))
    judgements = probe(trained, clips) if clips else {}
    for line in verdict(judgements):
        print(line)
    accuracies = {what: judgement.figures[ACCURACY][0] for what, judgement in judgements.items()}

    figure = plt.figure(figsize=(12, 6.5), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.3))[0]
    axes = left.subplots(2 if accuracies else 1, 1, squeeze=False)[:, 0]
    draw_losses(axes[0], losses)
    if accuracies:
        draw_probe(axes[1], accuracies, chance=1 / len(clips.classes))
    draw_mask(right.subplots(2, 1, sharex=True), trained, load_clip(data_path / names[0]), load_file(checkpoints[-1])["args"])
    out.parent.mkdir(parents=True, exist_ok=True)
    write_figure(out, figure, _PROGRAM, dpi=110)
    plt.close(figure)
    print(f"picture: {out}")
    return accuracies


# ---------------------------------------------------------------- figures


def read_losses(log: Path) -> list[tuple[float, float]]:
    """(epoch, mean training loss) of each epoch of a log.txt."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    if not rows:
        raise ValueError(f"{log} is empty: no epoch has ended")
    return [(row["epoch"], row["train_loss"]) for row in rows]


def load_clip(path: Path) -> np.ndarray:
    """A log-mel clip `[1, n_mels, frames]`."""
    clip = np.load(path)
    if clip.ndim != 3 or clip.shape[0] != 1:
        raise ValueError(f"{path} has the shape {list(clip.shape)}: expected [1, mel bands, frames]")
    return clip


def affordable_clips(trained: RuntimeM2D, paths: Sequence[Path]) -> int:
    """How many clips two encoders of this size can encode in ENCODING_FLOPS: the same ones whenever it is asked."""
    backbone = trained.backbone
    (rows, columns), input_frames = backbone.grid_size(), backbone.patch_embed.img_size[1]
    frames = np.mean([np.load(path, mmap_mode="r").shape[-1] for path in paths[:: max(1, len(paths) // 32)]])
    tokens = rows * columns * max(1.0, frames / input_frames)
    flops = 2 * tokens * sum(parameter.numel() for parameter in backbone.blocks.parameters())
    return int(ENCODING_FLOPS / (2 * flops))


def labelled_clips(data_path: Path, names: Sequence[str], most: int) -> LabelledClips | None:
    """Clips to probe with and their classes, the folders they lie in; none where there are fewer than two classes.

    Classes of fewer than CLIPS_PER_CLASS clips are left out. Of many clips `most` evenly spread ones are taken, at most
    PROBE_CLIPS, of no more of the largest classes than leave each CLIPS_PER_CLASS.
    """
    most = max(2 * CLIPS_PER_CLASS, min(PROBE_CLIPS, most))
    sizes = Counter(Path(name).parent.as_posix() for name in names)
    large = [folder for folder, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])) if size >= CLIPS_PER_CLASS]
    large = set(large[: most // CLIPS_PER_CLASS])
    chosen = sorted(name for name in names if Path(name).parent.as_posix() in large)
    chosen = chosen[:: max(1, -(-len(chosen) // most))]
    labels = [Path(name).parent.as_posix() for name in chosen]
    kept = {label for label, size in Counter(labels).items() if size >= FOLDS}
    rows = [i for i, label in enumerate(labels) if label in kept]
    if len(kept) < 2:
        return None
    logger.info("linear probe with %d of %d clips, of %d classes", len(rows), len(names), len(kept))
    classes, targets = np.unique([labels[i] for i in rows], return_inverse=True)
    paths = [data_path / chosen[i] for i in rows]
    return LabelledClips(paths, classes.tolist(), targets.astype(np.int64), np.arange(len(rows)))


def probe(trained: RuntimeM2D, clips: LabelledClips) -> dict[str, Judgement]:
    """Judgements of linear probes, by what they see.

    Raises:
        ValueError: a clip cannot be read.
    """
    protocol = Protocol(clips, FOLDS)
    sources: dict[str, FeatureSource] = {
        TRAINED: EncoderFeatures(trained, POOLING, "trained"),
        UNTRAINED: EncoderFeatures(untrained(trained).eval(), POOLING, "untrained"),
        LOGMEL: LogMelFeatures(trained.cfg.sr),
    }
    judgements = {}
    for what, source in sources.items():
        features, readable = clip_features(source, clips.paths)
        if not readable.all():
            raise ValueError(f"{(~readable).sum()} of the {len(readable)} clips to probe with cannot be read: see above")
        judgements[what] = protocol.judge(features, what)
    return judgements


def verdict(judgements: dict[str, Judgement]) -> list[str]:
    """What the probes say, a line each, and what follows from it (nothing without probes)."""
    if not judgements:
        return []
    lines = [f"linear probe on held-out clips: {j.figures[ACCURACY][0]:6.1%}  {what}" for what, j in judgements.items()]
    gains = {what: judgements[TRAINED].difference(judgements[what], ACCURACY) for what in (UNTRAINED, LOGMEL)}
    lines += [
        f"  more than the {what}: {100 * d:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        for what, (d, low, high) in gains.items()
    ]
    if min(low for _, low, _ in gains.values()) > 0:
        return [*lines, "Training taught it something that tells these classes apart."]
    return [*lines, NEXT_STEP]


# ---------------------------------------------------------------- pictures


def draw_losses(axes: Axes, losses: list[tuple[float, float]]) -> None:
    axes.plot(*zip(*losses, strict=True), color=ACCENT, marker="o" if len(losses) < 10 else None, markersize=4)
    axes.set(title="What training minimises", xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=MUTED, alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def draw_probe(axes: Axes, accuracies: dict[str, float], chance: float) -> None:
    percent = 100 * np.array(list(accuracies.values()))
    bars = axes.barh([what.replace(", ", ",\n").replace(" of ", "\nof ") for what in accuracies], percent, height=0.6)
    for bar, colour in zip(bars, (ACCENT, MUTED, MUTED), strict=True):
        bar.set_color(colour)
    axes.bar_label(bars, fmt="%.1f", padding=4)
    axes.axvline(100 * chance, color=INK, linestyle=":", label="chance")
    axes.invert_yaxis()
    axes.set(title="What a linear classifier reads from it", xlabel="held-out clips named correctly (%)", xlim=(0, 105))
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def draw_mask(axes: np.ndarray, runtime: RuntimeM2D, clip: np.ndarray, settings: dict) -> None:
    """The beginning of a clip, and what is left of it for the online encoder to see."""
    backbone, front_end = runtime.backbone, PRESETS[runtime.cfg.sr]
    (rows, columns), (height, width) = backbone.grid_size(), backbone.patch_size()
    frames = min(clip.shape[2] // width, columns) * width
    if frames == 0:
        raise ValueError(f"the first clip has {clip.shape[2]} frames, fewer than a patch of {width}")
    if settings.get("cont_mask"):
        backbone.set_random_1d_mask(settings["cont_mask"])
    torch.manual_seed(0)
    lms = torch.from_numpy(clip[None, :, :, :frames])
    hidden = backbone.mask_plan(lms, settings["mask_ratio"]).mask.reshape(rows, -1).numpy()
    hidden = hidden.repeat(height, axis=0).repeat(width, axis=1)
    titles = ("A clip", f"What the encoder sees of it in one step: {1 - hidden.mean():.0%}")
    extent = (0, frames * front_end.hop_size / front_end.sample_rate, 0, front_end.n_mels)
    spectrogram = lms[0, 0].numpy()
    shown = (spectrogram, np.ma.masked_where(hidden > 0, spectrogram))
    for ax, title, picture in zip(axes, titles, shown, strict=True):
        ax.set_facecolor("#e4e7eb")
        ax.imshow(
            picture, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=spectrogram.min(), vmax=spectrogram.max()
        )
        label_frequencies(ax, front_end)
        ax.set_title(title)
    axes[-1].set_xlabel("time (s)")


def label_frequencies(axes: Axes, front_end: FrontEnd) -> None:
    """Ticks of a mel axis in kHz."""
    filters = mel_filters(front_end)
    bins = np.arange(filters.shape[1]) * front_end.sample_rate / front_end.n_fft
    centres = filters @ bins / filters.sum(axis=1)
    hertz = [f for f in (250, 500, 1000, 2000, 4000, 8000) if f <= front_end.f_max]
    axes.set_yticks(np.interp(hertz, centres, np.arange(front_end.n_mels) + 0.5), [f"{f / 1000:g}" for f in hertz])
    axes.set_ylabel("frequency (kHz)")


if __name__ == "__main__":
    sys.exit(main())
