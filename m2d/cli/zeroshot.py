"""What sounds are, by the names of classes alone: M2D-CLAP compares each sound with a text of each class.

    m2d zeroshot recordings/ --weights m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025 --classes "dog, rain, speech"
    m2d zeroshot list.csv --weights CHECKPOINT --classes classes.txt --prompt "the sound of {}" --out scores.csv

AUDIO are files, folders, or lists. One list (.csv) with the columns file_name and label is judged: by accuracy, or by mAP where
a clip has several labels (split at --separator); without --classes its labels are the classes. Printed are the --top classes of
each file with their cosines; --out takes all of them.
"""

import argparse
import csv
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..evaluation.labelled_clips import LabelledClips, read_labelled
from ..evaluation.zero_shot import (
    DEFAULT_PROMPT,
    add_text_flags,
    class_names,
    judge,
    load_clap,
    prompts,
    similarities,
    sound_vectors,
)
from ..inference.clips import add_audio, list_clips, parse_with_audio
from ..inference.stream import BATCH_SIZE_HELP, WORKERS_HELP, check_counts
from ..utils.atomic_file import write_csv, write_figure
from ..utils.errors import UserError
from ..utils.malloc import keep_freed_memory
from ..utils.names import shown
from ..utils.outputs import OVERWRITE_HELP, check_outputs, drawn_by
from ..utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

_PROGRAM = "m2d zeroshot"
_MOST_DRAWN = 60  # files and classes that a picture can name
_LETTER = 0.08  # inches


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    add_audio(parser)
    parser.add_argument(
        "--weights", required=True, help="M2D-CLAP's checkpoint: a file, a folder, an https address, or hf:owner/name"
    )
    parser.add_argument("--classes", help="names split at commas, or a file with one a line or a column of names")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, help="the text of a class; {} stands for its name")
    parser.add_argument("--top", type=int, default=3, help="classes shown")
    parser.add_argument("--separator", default=";", help="between several labels of a clip in a list")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write the cosine of each file with each class")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw these cosines")
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    add_text_flags(parser)
    parser.add_argument("--batch_size", type=int, help=BATCH_SIZE_HELP)
    parser.add_argument("--workers", type=int, help=WORKERS_HELP)
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto takes the first there is")
    return parse_with_audio(parser, argv)


def labelled_list(args: argparse.Namespace) -> LabelledClips | None:
    """The clips of the one list that is given, where it has labels."""
    sources = [Path(source) for source in args.audio]
    labelled = [source for source in sources if source.suffix.lower() == ".csv" and source.is_file() and _has_labels(source)]
    if labelled and len(sources) > 1:
        raise UserError(f"{shown(labelled[0])}: a list with labels is judged alone: omit the other AUDIO")
    return read_labelled(labelled[0], args.separator) if labelled else None


def _has_labels(path: Path) -> bool:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        return "label" in next(csv.reader(file), [])


def targets_of(clips: LabelledClips, names: Sequence[str]) -> np.ndarray:
    """The clips' targets in the order of the classes' names.

    Raises:
        UserError: a label that is no class.
    """
    unknown = [name for name in clips.classes if name not in names]
    if unknown:
        raise UserError(f"--classes does not name {', '.join(unknown[:5])}, which the list has as labels")
    places = np.array([list(names).index(name) for name in clips.classes])
    if not clips.multi_label:
        return places[clips.targets]
    targets = np.zeros((len(clips), len(names)), dtype=bool)
    targets[:, places] = clips.targets
    return targets


def draw_scores(path: Path, scores: np.ndarray, files: Sequence[str], names: Sequence[str]) -> None:
    """Write a picture of the cosines of files (rows) with classes (columns); of many the first."""
    from matplotlib.figure import Figure

    scores, files, names = scores[:_MOST_DRAWN, :_MOST_DRAWN], files[:_MOST_DRAWN], names[:_MOST_DRAWN]
    left, below = (_LETTER * max(map(len, texts)) for texts in (files, names))
    figure = Figure(figsize=(4 + left + 0.28 * len(names), 2.5 + below + 0.22 * len(files)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(scores, cmap="magma", aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(files)), files, fontsize=7)
    nearest = scores.argmax(axis=1)
    axes.plot(nearest, range(len(files)), "o", color="white", markeredgecolor="black", markersize=5, label="nearest class")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    figure.colorbar(image, label="cosine of sound and text", shrink=0.8)
    write_figure(path, figure, _PROGRAM)


def show(files: Sequence[str], scores: np.ndarray, names: Sequence[str], top: int) -> None:
    """Print the nearest classes of each file."""
    for file, row in zip(files, scores, strict=True):
        best = np.argsort(-row, kind="stable")[:top]
        print("\n".join([file, *(f"  {row[c]:6.3f}  {names[c]}" for c in best)]))


def zeroshot(args: argparse.Namespace) -> int:
    """Compare, print and judge; returns 1 where files were left out, else 0.

    Raises:
        OSError, ValueError: nothing can be compared.
    """
    check_counts(args.batch_size, args.workers)
    if args.top < 1:
        raise UserError("--top must be at least 1")
    clips = labelled_list(args)
    paths = clips.paths if clips else list_clips(args.audio)
    if args.classes is None and clips is None:
        raise UserError("--classes is missing: name the classes, or give one list with the column label")
    names = class_names(args.classes) if args.classes is not None else clips.classes
    texts, targets = prompts(names, args.prompt), targets_of(clips, names) if clips else None
    inputs = [*paths, *filter(lambda source: Path(source).is_file(), [*args.audio, args.classes or ""])]
    check_outputs([args.out] if args.out else [], inputs, args.overwrite)
    check_outputs([args.plot] if args.plot else [], inputs, args.overwrite, lambda path: drawn_by(path, _PROGRAM))
    runtime = load_clap(args.weights, args)
    text_vectors = runtime.encode_clap_text(texts, truncate=args.truncate)
    vectors, left_out = sound_vectors(paths, runtime, args.batch_size, args.workers)
    readable = np.array([path not in set(left_out) for path in paths])
    if not readable.any():
        raise UserError(f"none of the {len(paths)} files could be read")
    files = [shown(path) for path, is_read in zip(paths, readable, strict=True) if is_read]
    scores = similarities(vectors, text_vectors)
    show(files, scores, names, args.top)
    if targets is not None:
        metric, value = judge(scores, targets[readable])
        print(f"\n{metric} {value:.4f} of {len(files)} clips, {len(names)} classes; prompt {args.prompt!r}")
    if args.out:
        rows = ((file, *(f"{value:.5f}" for value in row)) for file, row in zip(files, scores, strict=True))
        write_csv(args.out, ("file_name", *names), rows)
    if args.plot:
        draw_scores(args.plot, scores, files, names)
    return 1 if left_out else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where a file was left out."""
    args = parse_args(argv)
    keep_freed_memory()
    return run_program(lambda: zeroshot(args))


if __name__ == "__main__":
    sys.exit(main())
