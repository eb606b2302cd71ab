"""Tags of audio files by a fine-tuned checkpoint.

    m2d tag street.wav --weights m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly \
        --classes class_labels_indices.csv --top 5 --window 2 --plot street.png

prints the most probable classes of each file, or of each window of it. --classes names them: AudioSet's table (index, mid,
display_name), a .csv with one of the columns display_name, name, label or class, or a text file with a name per line. Its
rows are taken in the order of the classifier's outputs; those of a table with a column `mid` in the order of the mids as
text, which is how EVAR numbers AudioSet's classes (--order index takes the rows as they stand).
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from csv import DictReader
from pathlib import Path

import numpy as np
import torch

from ..checkpoint.weights import CheckpointError, read_weights
from ..utils.atomic_file import write_figure
from ..utils.device import pick_device
from ..utils.malloc import keep_freed_memory
from ..utils.program import ArgumentParser, run_program
from .clips import decode_ahead, list_clips
from .runtime import RuntimeM2D

log = logging.getLogger("m2d")

PROGRAM = "m2d tag"
_NAME_COLUMNS = ("display_name", "name", "label", "class")
# Windows of a picture where none are asked for: a column of pixels each is enough.
_PLOT_WINDOWS = 600


def read_classes(path: Path, order: str = "auto") -> list[str]:
    """Names of classes in the order of a classifier's outputs.

    Args:
        path: a text file with a name per line, or a .csv with a column of names.
        order: `mid`: by the column mid as text; `index`: as the rows stand; `auto`: by mid where there is such a column.

    Raises:
        ValueError: a .csv without a column of names, or without the column mid that was asked for.
    """
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix.lower() != ".csv":
        return [line.strip() for line in text.splitlines() if line.strip()]
    reader = DictReader(text.splitlines())
    columns = reader.fieldnames or []
    name = next((column for column in _NAME_COLUMNS if column in columns), None)
    if name is None:
        raise ValueError(f"{path}: none of the columns {', '.join(_NAME_COLUMNS)} (there are {', '.join(columns) or 'none'})")
    if order == "mid" and "mid" not in columns:
        raise ValueError(f"{path}: no column mid to order by (there are {', '.join(columns)})")
    rows = list(reader)
    if order != "index" and "mid" in columns:
        rows.sort(key=lambda row: row["mid"])
    return [row[name] for row in rows]


def load_tagger(weights: str | Path) -> RuntimeM2D:
    """A fine-tuned checkpoint with its classifier.

    Raises:
        CheckpointError: the checkpoint has none.
    """
    read = read_weights(weights)
    if "head.weight" not in read.head:
        raise CheckpointError(f"{read.path} has no classifier: tags need a fine-tuned checkpoint, with its head")
    return RuntimeM2D(weight_file=read.path, num_classes=read.head["head.weight"].shape[0])


def windows(steps: int, duration: float, window: float | None) -> list[tuple[int, int]]:
    """Time steps [start, stop) of the consecutive windows of so many seconds; None: one of all."""
    count = 1 if window is None else max(1, math.ceil(round(duration / window, 6)))
    width = steps if window is None else window * steps / duration
    edges = [min(steps, round(i * width)) for i in range(count)] + [steps]
    return [(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True) if stop > start]


@torch.no_grad()
def probabilities(runtime: RuntimeM2D, features: torch.Tensor, spans: Sequence[tuple[int, int]], single: bool) -> np.ndarray:
    """Probabilities `[spans, classes]` of stretches of the features `[T, feature_d]`: of each one's mean.

    `single`: one class at a time (softmax); otherwise each class for itself (sigmoid), as AudioSet's are.
    """
    logits = runtime.classify(torch.stack([features[start:stop].mean(dim=0) for start, stop in spans]))
    return (logits.softmax(dim=1) if single else logits.sigmoid()).cpu().numpy()


def tag_lines(
    path: Path, values: np.ndarray, times: Sequence[tuple[float, float]] | None, names: list[str], top: int
) -> list[str]:
    """What is printed of one file: `values` `[windows, classes]`, `times` their (start, end) in seconds, None for one of all."""
    lines = [f"{path}"]
    for i, row in enumerate(values):
        best = np.argsort(-row, kind="stable")[:top]
        if times is None:
            lines += [f"  {row[c]:6.3f}  {names[c]}" for c in best]
        else:
            lines.append(f"  {times[i][0]:8.2f} - {times[i][1]:8.2f} s  " + ", ".join(f"{names[c]} {row[c]:.3f}" for c in best))
    return lines


def plot_tags(
    out: Path, title: str, log_mel: np.ndarray, values: np.ndarray, edges: Sequence[float], names: list[str], top: int
) -> None:
    """A picture of the log-mel `[n_mels, frames]` and, below it, the most probable classes over time.

    Args:
        values: probabilities `[windows, classes]`.
        edges: the windows' limits in seconds, `[windows + 1]`.
    """
    from matplotlib.figure import Figure

    best = np.argsort(-values.max(axis=0), kind="stable")[:top]
    best = best[np.argsort(values[:, best].argmax(axis=0), kind="stable")]
    figure = Figure(figsize=(12, 3.2 + 0.3 * len(best)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.5, 0.3 * len(best) + 0.4])
    step = max(1, log_mel.shape[1] // 2000)
    extent = (edges[0], edges[-1], -0.5, log_mel.shape[0] - 0.5)
    upper.imshow(log_mel[:, ::step], origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    upper.set(ylabel="mel band", title=title)
    mesh = lower.pcolormesh(edges, np.arange(len(best) + 1), values[:, best].T, cmap="viridis", vmin=0, vmax=1)
    lower.set_yticks(np.arange(len(best)) + 0.5, [names[c] for c in best])
    lower.invert_yaxis()
    lower.set(xlabel="time (s)")
    figure.colorbar(mesh, ax=lower, label="probability")
    write_figure(out, figure, PROGRAM, dpi=120)
    log.info("%s: %s over %d windows", out, ", ".join(names[c] for c in best[:3]), len(values))


def tag(path: Path, waveform: np.ndarray, runtime: RuntimeM2D, names: list[str], args: argparse.Namespace) -> list[str]:
    """What is printed of a file with this waveform `[samples]`; draws its picture where one is asked for."""
    audio = torch.from_numpy(waveform)[None]
    duration = len(waveform) / runtime.sample_rate
    with torch.no_grad():
        features = runtime.encode(audio, average_per_time_frame=True)[0]
    seconds = duration / len(features)
    spans = windows(len(features), duration, args.window)
    values = probabilities(runtime, features, spans, args.single)
    times = None if args.window is None else [(start * seconds, stop * seconds) for start, stop in spans]
    if args.plot:
        if args.window is None:
            spans = windows(len(features), duration, max(1.0, duration / _PLOT_WINDOWS))
            values_over_time = probabilities(runtime, features, spans, args.single)
        else:
            values_over_time = values
        edges = [spans[0][0] * seconds, *(stop * seconds for _, stop in spans)]
        log_mel = runtime.to_feature(audio)[0, 0].cpu().numpy()
        plot_tags(args.plot, path.name, log_mel, values_over_time, edges, names, args.top)
    return tag_lines(path, values, times, names, args.top)


def check(args: argparse.Namespace, clips: list[Path], classes: int) -> list[str]:
    """The names of the classes; refuses arguments that do not go together."""
    if args.top < 1 or (args.window is not None and args.window <= 0):
        raise ValueError("--top and --window are greater than 0")
    if args.plot and len(clips) > 1:
        raise ValueError(f"--plot draws one file: {len(clips)} are given")
    if args.plot and args.plot.suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot {args.plot}: a name that ends in .png, .pdf or .svg is expected")
    names = read_classes(args.classes, args.order) if args.classes else [f"class {i}" for i in range(classes)]
    if len(names) != classes:
        raise ValueError(f"--classes {args.classes} names {len(names)} classes; the classifier has {classes}")
    return names


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where a file could not be read."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("audio", nargs="+", metavar="AUDIO", help="audio files, folders, or lists (.csv with a column file_name)")
    parser.add_argument("--weights", required=True, help="fine-tuned checkpoint: a file, a folder, or an https address")
    parser.add_argument("--classes", type=Path, help="names of the classes; none: their numbers")
    parser.add_argument("--order", choices=("auto", "mid", "index"), default="auto", help="order of the rows of --classes")
    parser.add_argument("--top", type=int, default=5, help="classes shown")
    parser.add_argument("--window", type=float, help="seconds of a window; none: tags of the whole file")
    parser.add_argument("--single", action="store_true", help="classes exclude each other: probabilities sum to 1")
    parser.add_argument("--plot", type=Path, help="picture of the tags over time to draw (.png, .pdf, .svg)")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    args = parser.parse_intermixed_args(argv)

    def work() -> int:
        clips = list_clips(args.audio)
        runtime = load_tagger(args.weights)
        names = check(args, clips, runtime.num_classes)
        runtime.to(pick_device(args.device))
        failed = 0
        for path, waveform in decode_ahead(clips, runtime.sample_rate, threads=2):
            if isinstance(waveform, Exception):
                log.error("left out: %s", waveform)
                failed += 1
            else:
                print("\n".join(tag(path, waveform, runtime, names, args)), flush=True)
        return 1 if failed else 0

    keep_freed_memory()
    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
