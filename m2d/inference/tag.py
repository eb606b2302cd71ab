"""Tags of audio files by a fine-tuned checkpoint.

    m2d tag street.wav --weights m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly \
        --classes class_labels_indices.csv --top 5 --window 2 --plot street.png

prints the most probable classes of each file, or of each window of it. --classes names them: AudioSet's table (index, mid,
display_name), a .csv with one of the columns display_name, name, label or class, or a text file with a name per line. The
rows of a table with a column `mid` are taken in the order of the mids as text, which is how EVAR numbers AudioSet's classes;
others in the order of their column `index`, or as they stand (--order index: never by mid). Checkpoints of app/finetune.py
bring the names along, and need no --classes.

Files are decoded and encoded in stretches: with the default --batch_size the program needs up to 300 MB beside a model of
ViT-Base's size, however long the files are. A last window of less than half the length joins the one before. A file that
cannot be read is reported; the exit status is then 1.
"""

import argparse
import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..checkpoint.weights import CheckpointError, read_weights
from ..utils.device import pick_device
from ..utils.malloc import keep_freed_memory
from ..utils.names import shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program
from .classes import read_classes
from .clips import add_audio, list_clips, parse_with_audio
from .runtime import RuntimeM2D
from .stream import Sink, check_finite, encode_files
from .tag_picture import PICTURE_SUFFIXES, PROGRAM, draw_tags, read_log_mel
from .windows import Window, WindowMeans, joined

logger = logging.getLogger("m2d")

# Windows of a picture without --window: of one second, or longer where these would be more than the limit.
_PICTURE_SECONDS, _PICTURE_WINDOWS = 1.0, 600


class Tagger:
    """A fine-tuned model with the names of its classes.

    Args:
        weights: the checkpoint.
        classes: a file that names its classes; None: the checkpoint's own names, or numbers.
        order: see `read_classes`.
        single: classes exclude each other (softmax); otherwise as the checkpoint tells, or each for itself (sigmoid).

    Raises:
        FileNotFoundError, CheckpointError: the checkpoint cannot be used, or has no classifier.
        ValueError: the names do not fit it.
    """

    def __init__(self, weights: str | Path, classes: Path | None = None, order: str = "auto", single: bool = False):
        read = read_weights(weights)
        if "head.weight" not in read.head:
            raise CheckpointError(f"{shown(read.path)} has no classifier: tags need a fine-tuned checkpoint, with its head")
        count = read.head["head.weight"].shape[0]
        self.names = read_classes(classes, order) if classes else read.classes or [f"class {i}" for i in range(count)]
        if len(self.names) != count:
            raise ValueError(f"--classes {shown(classes or weights)} names {len(self.names)} classes; the classifier has {count}")
        self.single = single or read.single_label
        self.runtime = RuntimeM2D(weight_file=read.path, num_classes=count)

    @torch.no_grad()
    def probabilities(self, features: torch.Tensor) -> np.ndarray:
        """Probabilities `[N, classes]` of features averaged over some time, `[N, feature_d]`."""
        logits = self.runtime.classify(features.to(self.runtime.head.weight.device)).float()
        return (logits.softmax(dim=1) if self.single else logits.sigmoid()).cpu().numpy()


class TagSink(Sink):
    """Prints the tags of each file as soon as those before it are printed."""

    def __init__(self, paths: Sequence[Path], tagger: Tagger, args: argparse.Namespace):
        super().__init__(paths)
        self._tagger, self._args = tagger, args
        self._windows: dict[int, WindowMeans] = {}
        self._finished: dict[int, list[str]] = {}
        self._printed = 0

    def put(self, clip: int, step: int, embeddings: torch.Tensor) -> None:
        if clip not in self._windows:
            picture = self._args.plot is not None and self._args.window is None
            self._windows[clip] = WindowMeans(_PICTURE_SECONDS, _PICTURE_WINDOWS) if picture else WindowMeans(self._args.window)
        runtime = self._tagger.runtime
        seconds_per_frame = runtime.front_end.hop_size / runtime.sample_rate
        for i, features in enumerate(embeddings):
            self._windows[clip].add(runtime.cutting.step_start(step + i) * seconds_per_frame, features)

    def complete(self, clip: int, samples: int, frames: int) -> None:
        windows = self._windows.pop(clip).windows(samples / self._tagger.runtime.sample_rate)
        path, args = self.paths[clip], self._args
        if args.plot is not None:
            self._draw(path, windows, frames)
        printed = windows if args.window is not None else [joined(windows)]
        values = self._tagger.probabilities(torch.stack([window.features for window in printed]))
        times = [(window.start, window.end) for window in printed] if args.window is not None else None
        self._finish(clip, tag_lines(path, values, times, self._tagger.names, args.top))

    def discard(self, clip: int, reason: str) -> None:
        self._windows.pop(clip, None)
        super().discard(clip, reason)
        self._finish(clip, [])

    def _finish(self, clip: int, lines: list[str]) -> None:
        self._finished[clip] = lines
        while self._printed in self._finished:
            for line in self._finished.pop(self._printed):
                print(line)
            sys.stdout.flush()
            self._printed += 1

    def _draw(self, path: Path, windows: Sequence[Window], frames: int) -> None:
        tagger = self._tagger
        values = tagger.probabilities(torch.stack([window.features for window in windows]))
        edges = [windows[0].start, *(window.end for window in windows)]
        log_mel = read_log_mel(path, tagger.runtime, frames)
        draw_tags(self._args.plot, path.name, log_mel, tagger.runtime.front_end, values, edges, tagger.names, self._args.top)
        logger.info("%s: tags over %d windows", shown(self._args.plot), len(windows))


def tag_lines(
    path: Path, values: np.ndarray, times: Sequence[tuple[float, float]] | None, names: Sequence[str], top: int
) -> list[str]:
    """What is printed of one file: `values` `[windows, classes]`, `times` their (start, end) in seconds, None for one of all."""
    lines = [shown(path)]
    for i, row in enumerate(values):
        best = np.argsort(-row, kind="stable")[:top]
        if times is None:
            lines += [f"  {row[c]:6.3f}  {names[c]}" for c in best]
        else:
            lines.append(f"  {times[i][0]:8.2f} - {times[i][1]:8.2f} s  " + ", ".join(f"{names[c]} {row[c]:.3f}" for c in best))
    return lines


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_audio(parser)
    parser.add_argument("--weights", required=True, help="fine-tuned checkpoint: a file, a folder, or an https address")
    parser.add_argument("--classes", type=Path, help="names of the classes; none: the checkpoint's, or their numbers")
    parser.add_argument("--order", choices=("auto", "mid", "index"), default="auto", help="order of the rows of --classes")
    parser.add_argument("--top", type=int, default=5, help="classes shown")
    parser.add_argument("--window", type=float, help="seconds of a window; none: tags of the whole file")
    parser.add_argument("--single", action="store_true", help="classes exclude each other: probabilities sum to 1")
    parser.add_argument("--plot", type=Path, help="picture of the tags over time to draw (.png, .pdf, .svg)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--batch_size", type=int, default=8, help="pieces of the model's input length encoded at a time")
    parser.add_argument("--workers", type=int, default=2, help="files decoded at a time")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    return parse_with_audio(parser, argv)


def check_args(args: argparse.Namespace, clips: Sequence[Path]) -> None:
    """Raise ValueError for arguments that do not go together."""
    if args.top < 1 or (args.window is not None and not args.window > 0):
        raise ValueError("--top and --window are greater than 0")
    if min(args.batch_size, args.workers) < 1:
        raise ValueError("--batch_size and --workers are at least 1")
    if args.plot is None:
        return
    if len(clips) > 1:
        raise ValueError(f"--plot draws one file: {len(clips)} are given")
    if args.plot.suffix not in PICTURE_SUFFIXES:
        raise ValueError(f"--plot {shown(args.plot)}: a name that ends in .png, .pdf or .svg is expected")
    inputs = [*clips, *filter(None, (args.classes,)), *(source for source in args.audio if Path(source).is_file())]
    check_outputs([args.plot], inputs, args.overwrite, lambda path: drawn_by(path, PROGRAM))
    args.plot.parent.mkdir(parents=True, exist_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where a file was left out."""
    args = parse_args(argv)

    def work() -> int:
        clips = list_clips(args.audio)
        check_args(args, clips)
        tagger = Tagger(args.weights, args.classes, args.order, args.single)
        tagger.runtime.to(pick_device(args.device))
        check_finite(tagger.runtime)
        sink = TagSink(clips, tagger, args)
        encode_files(tagger.runtime, sink, args.batch_size, args.workers)
        logger.info("%d files tagged, %d left out%s", len(clips) - len(sink.left_out), len(sink.left_out), sink.warned)
        return 1 if sink.left_out else 0

    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding has no letters for
    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
