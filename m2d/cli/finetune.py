"""A classifier of your own sounds from a pre-trained encoder.

    m2d finetune sounds/ --weights m2d_vit_base-80x608p16x16-221006-mr7/checkpoint-300.pth --out classifier/
    m2d tag street.wav --weights classifier/checkpoint-best.pth

DATA is a folder of class folders (a second level of folders are groups), or a list: a CSV with the columns file_name and label,
and optionally split (train, val, test) and group; several labels of a clip are separated by ';'. A list with the columns onset
and offset (s) as well holds sound events: the classifier then gives logits for every time step. Without the column split, a fifth
of the groups is held out to validate by, or of every class where there are no groups. All clips are read once before: those that
cannot be read are reported and left out.

In --out: checkpoint-best.pth (the epoch with the best validation score), last.pth, log.txt, console.txt, run.json (the settings),
a learning curve and, for single labels, the confusion matrix; `m2d report` makes a page of it. The same command resumes a run
that was stopped, at the last finished epoch; Ctrl-C is safe. Under torchrun every process takes --batch_size clips a step.
"""

import argparse
import hashlib
import json
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from types import UnionType
from typing import get_args

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..checkpoint.file import load_file
from ..evaluation.labelled_clips import LabelledClips, read_labelled, read_table
from ..evaluation.probe_plots import confusion, draw_confusion
from ..finetune.clips import (
    Events,
    FineTuneSet,
    check_events,
    class_weights,
    clip_seconds,
    read_events,
    split_clips,
    warn_of_unjudged,
)
from ..finetune.training import BEST, LAST, LOG, FineTuning, Settings, build
from ..run.folder import FINETUNE_LOCK, RECORD, read_run_file, record_start
from ..run.log import RunLog
from ..train.config import TRACKERS, tracker_list
from ..train.distributed.collectives import from_rank0, run_on_all_ranks
from ..train.distributed.launch import Launch, exit_process, start
from ..train.monitoring.trackers import check_trackers, open_trackers
from ..utils.atomic_file import write_figure
from ..utils.errors import UserError
from ..utils.names import counted, shown
from ..utils.outputs import check_outputs, drawn_by
from ..utils.own_files.lock import locked
from ..utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

_PROGRAM = "m2d finetune"
CURVE, CONFUSION = "learning_curve.png", "confusion.png"


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    parser = ArgumentParser("m2d finetune", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="a folder of class folders, or a list (.csv)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the run")
    parser.add_argument("--data_path", type=Path, help="the folder that a list's names start from; default: the list's own")
    parser.add_argument("--separator", default=";", help="between several labels of a clip in a list")
    parser.add_argument("--device", default="auto", help="cuda, mps, cpu; auto: cuda where there is one")
    parser.add_argument("--workers", type=int, default=4, help="threads that read and decode")
    parser.add_argument(
        "--tracker",
        type=tracker_list,
        default=("tensorboard",),
        help=f"where figures go beside log.txt: {', '.join(TRACKERS)}, joined by commas (default: tensorboard)",
    )
    group = parser.add_argument_group("how to train")
    for setting in fields(Settings):
        _add_setting(group, setting)
    return parser


def _add_setting(group: argparse._ArgumentGroup, setting: Field) -> None:
    optional = isinstance(setting.type, UnionType)
    kind = next(t for t in get_args(setting.type) if t is not type(None)) if optional else setting.type
    options = {"help": setting.metadata["help"], "default": setting.default}
    if setting.default is MISSING:
        options = {"help": setting.metadata["help"], "required": True}
    elif setting.default is not None:
        options["help"] += f" (default: {setting.default})"
    if kind is bool:
        group.add_argument(f"--{setting.name}", action=argparse.BooleanOptionalAction, **options)
    else:
        group.add_argument(f"--{setting.name}", type=kind, choices=setting.metadata.get("choices"), **options)


def check(settings: Settings, workers: int) -> None:
    """Refuse settings that cannot work.

    Raises:
        UserError: names the flag.
    """
    for name in ("epochs", "batch_size", "split_iter"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    if workers < 1:
        raise UserError("--workers must be at least 1")
    for name in ("warmup_epochs", "mixup", "freq_mask", "time_mask", "patience", "weight_decay"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise UserError(f"--{name} is a number of at least 0")
    if settings.lr is not None and not 0 < settings.lr < math.inf:
        raise UserError(f"--lr is a number above 0, not {settings.lr}")
    if settings.training_mask is not None and not 0 <= settings.training_mask < 1:
        raise UserError(f"--training_mask {settings.training_mask}: from 0 to below 1")
    if not 0 < settings.layer_decay <= 1:
        raise UserError(f"--layer_decay {settings.layer_decay}: above 0, at most 1")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = make_parser().parse_args(argv)
    return run_program(lambda: finetune(args), "interrupted: the same command resumes after the last finished epoch")


def finetune(args: argparse.Namespace) -> None:
    """Fine-tune and report.

    Raises:
        OSError, UserError: it cannot be done; names the reason.
    """
    settings = Settings(**{setting.name: getattr(args, setting.name) for setting in fields(Settings)})
    check(settings, args.workers)
    check_trackers(args.tracker)
    refuse_foreign_files(args.out, args.weights)
    clips, events = _read(args)
    split_clips(clips, settings.seed)  # what cannot be split is refused before clips are read
    launch = start(args.device)
    if not launch.is_main:
        logger.setLevel(logging.ERROR)
    seconds = from_rank0(launch, lambda: clip_seconds(clips.paths, args.workers))
    readable = np.flatnonzero(~np.isnan(seconds))
    clips = clips[readable]
    if events is not None:
        events = [events[i] for i in readable]
        check_events(clips.paths, events, seconds[readable])
    parts = split_clips(clips, settings.seed)
    from_rank0(launch, lambda: args.out.mkdir(parents=True, exist_ok=True))
    with ExitStack() as held:
        from_rank0(launch, lambda: held.enter_context(locked(args.out / FINETUNE_LOCK)))
        _train(args, settings, launch, clips, events, parts)
    if launch.world_size > 1:
        exit_process(0)


def _train(
    args: argparse.Namespace,
    settings: Settings,
    launch: Launch,
    clips: LabelledClips,
    events: list[Events] | None,
    parts: tuple[np.ndarray, np.ndarray],
) -> None:
    """Fine-tune on the clips of the first part and validate by those of the second, in a folder that no other run uses."""
    train, validation = parts
    warn_of_unjudged(clips, validation)
    targets = clips.targets if clips.multi_label else np.eye(len(clips.classes), dtype=bool)[clips.targets]

    model = build(settings, len(clips.classes), per_step=events is not None)
    cfg = model.runtime.cfg

    def opened(rows: np.ndarray) -> FineTuneSet:
        wanted = targets[rows] if events is None else [events[i] for i in rows]
        sizes = cfg.input_size[1], cfg.patch_size[1]
        return FineTuneSet([clips.paths[i] for i in rows], wanted, len(clips.classes), cfg.sr, *sizes)

    classes = counted(len(clips.classes), "class")
    logger.info("%s to train on, %d to validate by, %s", counted(len(train), "clip"), len(validation), classes)
    run = FineTuning(
        settings,
        model,
        opened(train),
        opened(validation),
        clips.classes,
        single_label=not clips.multi_label,
        folder=args.out,
        launch=launch,
        workers=args.workers,
        weights=class_weights(clips, train) if settings.balanced else None,
        data=_digest(clips, events),
    )
    source = {"data": str(args.data), "data_path": args.data_path and str(args.data_path), "separator": args.separator}
    record = {**source, **asdict(settings)}
    from_rank0(launch, lambda: record_start(args.out, record))
    trackers = run_on_all_ranks(launch, lambda: open_trackers(args.tracker, record, args.out) if launch.is_main else [])
    tensorboard = "" if "tensorboard" in args.tracker else None
    run.log = RunLog(args.out if launch.is_main else None, tensorboard, run.progress.epoch, trackers)
    with closing(run.log):
        best = run.run()
        if launch.is_main:
            _finish(run, args.out, best)


def refuse_foreign_files(out: Path, weights: str) -> None:
    """Refuse a folder whose checkpoints, log or pictures no fine-tuning wrote, or that holds the weights to start from.

    Raises:
        UserError: names the file.
    """
    paths = [out / BEST, out / LAST]
    check_outputs(paths, [weights], overwrite=True)
    foreign = [path for path in paths if path.exists() and "finetune" not in load_file(path)]
    if not any(path.exists() for path in paths):  # a log comes with a checkpoint
        foreign += [path for path in (out / LOG,) if path.exists()]
    record = out / RECORD
    if record.exists() and "mixup" not in read_run_file(out).settings:
        foreign.append(record)
    foreign += [path for path in (out / CURVE, out / CONFUSION) if path.exists() and not drawn_by(path, _PROGRAM)]
    if foreign:
        raise UserError(f"{shown(foreign[0])} was not written by m2d finetune, which would replace it: give another --out")


def _read(args: argparse.Namespace) -> tuple[LabelledClips, list[Events] | None]:
    """Clips with labels; for a list of events, recordings with the labels of their events, and the events."""
    if not args.data.is_dir() and args.data.exists():
        table = read_table(args.data)
        if {"onset", "offset"} <= set(table):
            return _recordings(table, args)
    return read_labelled(args.data, args.separator, args.data_path or ""), None


def _recordings(table: pd.DataFrame, args: argparse.Namespace) -> tuple[LabelledClips, list[Events]]:
    paths, events, classes, firsts = read_events(table, args.data_path or args.data.parent, shown(args.data))
    targets = np.zeros((len(paths), len(classes)), dtype=bool)
    for i, event in enumerate(events):
        targets[i, event.spans[:, 2].astype(int)] = True
    return LabelledClips.from_table(args.data, firsts, paths, classes, targets), events


def _digest(clips: LabelledClips, events: list[Events] | None) -> str:
    """Of files, labels, groups, splits and events."""
    digest = hashlib.sha256("\0".join([*map(str, clips.paths), *clips.classes]).encode(errors="surrogateescape"))
    for values in (clips.targets, clips.groups, *(event.spans for event in events or ())):
        digest.update(np.ascontiguousarray(values).tobytes())
    digest.update(repr(None if clips.splits is None else clips.splits.tolist()).encode())
    return digest.hexdigest()


def _finish(run: FineTuning, out: Path, best: float) -> None:
    entries = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    draw_curve(out / CURVE, entries, run.metric_name)
    done = run.progress
    logger.info("best %s %.4f after epoch %d of %d: %s", run.metric_name, best, done.best_epoch, done.epoch, shown(out / BEST))
    if run.single_label:
        run.load_best()
        scores, targets = run.predict(run.validation_set)
        matrix = confusion(scores.argmax(axis=1), targets.argmax(axis=1), len(run.classes))
        draw_confusion(out / CONFUSION, matrix, run.classes, "Validation clips, best epoch", _PROGRAM)
    logger.info("m2d tag FILE --weights %s names new sounds with it", shown(out / BEST))


def draw_curve(path: Path, entries: list[dict], metric: str) -> None:
    """Write the training loss and the validation score by epoch."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [entry["epoch"] for entry in entries]
    axes.plot(epochs, [entry["train_loss"] for entry in entries], color="#9aa5b1", label="training loss")
    axes.set(xlabel="epoch", ylabel="training loss")
    right = axes.twinx()
    right.plot(epochs, [entry[metric] for entry in entries], color="#c0392b", label=f"validation {metric}")
    right.set(ylabel=metric, ylim=(0, 1.02))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    write_figure(path, figure, _PROGRAM, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
