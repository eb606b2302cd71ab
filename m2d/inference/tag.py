"""Tags of audio files by a fine-tuned checkpoint.

    m2d tag street.wav --weights m2d_as_vit_base-80x1001p16x16-240213_AS-FT_enconly \\
        --classes class_labels_indices.csv --top 5 --window 2 --plot street.png

prints the most probable classes of each file, or of each window of it; --out tags.csv writes them as a table.

--classes names the classes: AudioSet's table (index, mid, display_name), a .csv with one of the columns display_name, name,
label or class, or a text file with a name per line. The rows of a table with a column `mid` are taken in the order of the mids
as text, which is how EVAR numbers AudioSet's classes; others in the order of their column `index`, or as they stand (--order
index: never by mid). Checkpoints of m2d finetune and app/finetune.py hold the names and need no --classes.

    m2d tag recordings/ --weights detector/checkpoint-best.pth --events events/ --threshold 0.4 --threshold dog=0.6

writes sound events: a label file of Audacity for each recording (events/NAME.wav.txt: onset, offset, class), events.csv (a list
as m2d finetune reads it) and events.json. A class sounds in the time steps whose probability reaches its --threshold, after a
median filter over --median seconds; events shorter than --min_length seconds are dropped. Neither is done by default.

Files are decoded and encoded in stretches: with the default --batch_size the program needs up to 300 MB beside a model of
ViT-Base's size, however long the files are. A last window of less than half the length joins the one before. A file that
cannot be read is reported; the exit status is then 1.
"""

import argparse
import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from ..utils.atomic_file import open_csv
from ..utils.device import no_tf32, pick_device
from ..utils.malloc import keep_freed_memory
from ..utils.names import counted, shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program
from .clips import add_audio, list_clips, name_in_list, parse_with_audio
from .events import DEFAULT_THRESHOLD, EventRule, EventSink, class_thresholds
from .stream import BATCH_SIZE_HELP, WORKERS_HELP, Sink, check_counts, check_finite, encode_files
from .tag_picture import PICTURE_SUFFIXES, PROGRAM, draw_tags, read_log_mel
from .tagger import Tagger
from .windows import Window, WindowMeans, joined

logger = logging.getLogger("m2d")

Show = Callable[[Path, Sequence[Window], np.ndarray], None]

# Windows of a picture without --window: of one second, or longer where these would be more than the limit.
_PICTURE_SECONDS, _PICTURE_WINDOWS = 1.0, 600


class TagSink(Sink):
    """Shows the tags of each file as soon as those before it are shown.

    Args:
        paths: the files.
        tagger: the classifier.
        args: the command line.
        show: takes a file, windows and the probabilities of each `[windows, classes]`.
    """

    def __init__(self, paths: Sequence[Path], tagger: Tagger, args: argparse.Namespace, show: Show):
        super().__init__(paths)
        self._tagger, self._args, self._show = tagger, args, show
        self._windows: dict[int, WindowMeans] = {}
        self._finished: dict[int, tuple[list[Window], np.ndarray] | None] = {}
        self._shown = 0

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
        wanted = windows if args.window is not None else [joined(windows)]
        self._finish(clip, (wanted, self._tagger.probabilities(torch.stack([window.features for window in wanted]))))

    def discard(self, clip: int, reason: str) -> None:
        self._windows.pop(clip, None)
        super().discard(clip, reason)
        self._finish(clip, None)

    def _finish(self, clip: int, result: tuple[list[Window], np.ndarray] | None) -> None:
        self._finished[clip] = result
        while self._shown in self._finished:
            result = self._finished.pop(self._shown)
            if result is not None:
                self._show(self.paths[self._shown], *result)
            self._shown += 1

    def _draw(self, path: Path, windows: Sequence[Window], frames: int) -> None:
        tagger = self._tagger
        values = tagger.probabilities(torch.stack([window.features for window in windows]))
        edges = [windows[0].start, *(window.end for window in windows)]
        log_mel = read_log_mel(path, tagger.runtime, frames)
        draw_tags(self._args.plot, path.name, log_mel, tagger.runtime.front_end, values, edges, tagger.names, self._args.top)
        logger.info("%s: tags over %d windows", shown(self._args.plot), len(windows))


def _best(row: np.ndarray, top: int) -> np.ndarray:
    """The most probable classes, the best first."""
    return np.argsort(-row, kind="stable")[:top]


def printer(names: Sequence[str], top: int, windowed: bool) -> Show:
    """Prints tags: a line per class of a whole file, or a line per window."""

    def show(path: Path, windows: Sequence[Window], values: np.ndarray) -> None:
        print(shown(path))
        for window, row in zip(windows, values, strict=True):
            if windowed:
                tags = ", ".join(f"{names[c]} {row[c]:.3f}" for c in _best(row, top))
                print(f"  {window.start:8.2f} - {window.end:8.2f} s  {tags}")
            else:
                print("\n".join(f"  {row[c]:6.3f}  {names[c]}" for c in _best(row, top)))
        sys.stdout.flush()

    return show


def write_tags(clips: Sequence[Path], tagger: Tagger, args: argparse.Namespace) -> Sink:
    """Tags of all files into --out: a row per file, window and class.

    Raises:
        ValueError: no file could be read; nothing is written.
    """
    with open_csv(args.out, ("file_name", "start", "end", "label", "probability")) as table:

        def show(path: Path, windows: Sequence[Window], values: np.ndarray) -> None:
            name = name_in_list(path, args.out.parent)
            for window, row in zip(windows, values, strict=True):
                times = round(window.start, 3), round(window.end, 3)
                table.writerows((name, *times, tagger.names[c], f"{row[c]:.4f}") for c in _best(row, args.top))

        sink = TagSink(clips, tagger, args, show)
        encode_files(tagger.runtime, sink, args.batch_size, args.workers)
        refuse_nothing(sink)
    return sink


def write_events(clips: Sequence[Path], tagger: Tagger, args: argparse.Namespace) -> Sink:
    """Sound events of all files into the folder --events.

    Raises:
        ValueError: an invalid threshold, or no file could be read.
    """
    rule = EventRule(class_thresholds(args.threshold, tagger.names), args.median, args.min_length)
    if not tagger.detects_events:
        logger.warning("the classifier was trained on whole clips: onsets and offsets are rough")
    sink = EventSink(clips, tagger, rule, args.events)
    encode_files(tagger.runtime, sink, args.batch_size, args.workers)
    refuse_nothing(sink)
    logger.info("%s: %d events", shown(args.events), sink.write_tables())
    return sink


def print_tags(clips: Sequence[Path], tagger: Tagger, args: argparse.Namespace) -> Sink:
    """Tags of all files on stdout."""
    sink = TagSink(clips, tagger, args, printer(tagger.names, args.top, args.window is not None))
    encode_files(tagger.runtime, sink, args.batch_size, args.workers)
    if tagger.detects_events:
        logger.info("the classifier was trained on time steps: --events FOLDER writes onsets and offsets")
    return sink


def refuse_nothing(sink: Sink) -> None:
    """Raise ValueError where no file could be read."""
    if len(sink.left_out) == len(sink.paths):
        raise ValueError(f"none of the {len(sink.paths)} files could be read: nothing is written")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_audio(parser)
    parser.add_argument(
        "--weights", required=True, help="fine-tuned checkpoint: a file, a folder, an https address, or hf:owner/name"
    )
    parser.add_argument("--classes", type=Path, help="names of the classes; none: the checkpoint's, or their numbers")
    parser.add_argument("--order", choices=("auto", "mid", "index"), default="auto", help="order of the rows of --classes")
    parser.add_argument("--top", type=int, default=5, help="classes shown")
    parser.add_argument("--window", type=float, help="seconds of a window; none: tags of the whole file")
    parser.add_argument("--single", action="store_true", help="classes exclude each other: probabilities sum to 1")
    parser.add_argument(
        "--out", type=Path, help="table to write in place of printing (.csv: file_name,start,end,label,probability)"
    )
    parser.add_argument("--events", type=Path, metavar="FOLDER", help="write sound events: label files, events.csv, events.json")
    threshold = f"probability that an event takes (default: {DEFAULT_THRESHOLD}); CLASS=P for one class; may be repeated"
    parser.add_argument("--threshold", action="append", default=[], metavar="P", help=threshold)
    parser.add_argument("--median", type=float, default=0.0, help="seconds of a median filter over time, for --events")
    parser.add_argument("--min_length", type=float, default=0.0, help="seconds: shorter events are dropped")
    parser.add_argument("--plot", type=Path, help="picture of the tags over time to draw (.png, .pdf, .svg)")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    parser.add_argument("--batch_size", type=int, help=BATCH_SIZE_HELP)
    parser.add_argument("--workers", type=int, help=WORKERS_HELP)
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    return parse_with_audio(parser, argv)


def check_args(args: argparse.Namespace, clips: Sequence[Path]) -> None:
    """Raise ValueError for arguments that do not go together."""
    if args.top < 1 or (args.window is not None and not args.window > 0):
        raise ValueError("--top and --window are greater than 0")
    check_counts(args.batch_size, args.workers)
    if not (np.isfinite([args.median, args.min_length]).all() and min(args.median, args.min_length) >= 0):
        raise ValueError("--median and --min_length are seconds, 0 or more")
    if args.events is None and (args.threshold or args.median or args.min_length):
        raise ValueError("--threshold, --median and --min_length are for events: give --events FOLDER")
    if args.events is not None and any(option is not None for option in (args.out, args.plot, args.window)):
        raise ValueError("--events writes files of its own: leave --out, --plot and --window out")
    check_tag_outputs(args, clips)


def check_tag_outputs(args: argparse.Namespace, clips: Sequence[Path]) -> None:
    """Raise ValueError for outputs that cannot be written, or would replace a file; make the folders of the others."""
    inputs = [*clips, *filter(None, (args.classes,)), *(source for source in args.audio if Path(source).is_file())]
    if args.events is not None:
        check_outputs(EventSink.outputs(clips, args.events), inputs, args.overwrite)
        args.events.mkdir(parents=True, exist_ok=True)
    if args.out is not None:
        if args.out.suffix != ".csv":
            raise ValueError(f"--out {shown(args.out)}: expected a name that ends in .csv")
        check_outputs([args.out], inputs, args.overwrite)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.plot is not None:
        if len(clips) > 1:
            raise ValueError(f"--plot draws one file: {len(clips)} are given")
        if args.plot.suffix not in PICTURE_SUFFIXES:
            raise ValueError(f"--plot {shown(args.plot)}: expected a name that ends in .png, .pdf or .svg")
        check_outputs([args.plot], inputs, args.overwrite, lambda path: drawn_by(path, PROGRAM))
        args.plot.parent.mkdir(parents=True, exist_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where a file was left out."""
    args = parse_args(argv)

    def work() -> int:
        clips = list_clips(args.audio)
        if args.events is not None:
            clips = list(dict.fromkeys(clips))  # one label file each
        check_args(args, clips)
        tagger = Tagger(args.weights, args.classes, args.order, args.single)
        no_tf32()
        tagger.runtime.to(pick_device(args.device))
        check_finite(tagger.runtime)
        tag = write_events if args.events is not None else write_tags if args.out is not None else print_tags
        sink = tag(clips, tagger, args)
        written = "" if args.out is None else f"{shown(args.out)}: "
        tagged = counted(len(clips) - len(sink.left_out), "file")
        logger.info("%s%s tagged, %d left out%s", written, tagged, len(sink.left_out), sink.warned)
        return 1 if sink.left_out else 0

    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal's encoding has no letters for
    return run_program(work)


if __name__ == "__main__":
    sys.exit(main())
