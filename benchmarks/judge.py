"""What encoders are worth on the tasks of real_sound.py, by which layers and statistics of their features are read.

    python benchmarks/judge.py SOUND CKPT [CKPT …] --out judged.jsonl

SOUND is what real_sound.py wrote, with lms/ (see learning.py). Every checkpoint of the training programs is judged beside the
same encoder untrained and the log-mel's mean and deviation, by the ridge probe of learning.py: whole groups are held out, and
differences compare the same clips. `m2d probe` judges by one set of features, with another classifier.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from learning import TASKS, interval, rank_me, ridge_probe, statistics

from m2d.evaluation.features import untrained
from m2d.inference.runtime import RuntimeM2D

BATCH = 64
Clips = list[torch.Tensor]  # log-mel [1, 80, frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, metavar="SOUND", help="the folder that real_sound.py wrote, with lms/")
    parser.add_argument("weights", nargs="+", metavar="CKPT", help="checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to add to")
    parser.add_argument("--seen", nargs="+", type=int, help="clips that each encoder has seen, for draw_learning.py")
    parser.add_argument("--curve", default="", help="what the encoders are points of, for draw_learning.py")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    args = parser.parse_args()
    if args.seen and len(args.seen) != len(args.weights):
        parser.error(f"--seen has {len(args.seen)} numbers for {len(args.weights)} checkpoints")
    for task in args.tasks:
        clips, labels, groups = read_clips(args.sound, task)
        logmel = ridge_probe(torch.stack([statistics(clip[0].T) for clip in clips]), labels, groups)
        known: dict[str, dict[str, np.ndarray]] = {}
        for weights, seen in zip(args.weights, args.seen or [None] * len(args.weights), strict=True):
            runtime = RuntimeM2D(weight_file=weights).eval()
            shape = f"{runtime.cfg.input_size} {runtime.cfg.patch_size} {runtime.cfg.mean} {runtime.cfg.std}"
            if shape not in known:
                random = features(untrained(runtime).eval(), clips)
                known[shape] = {what: ridge_probe(values, labels, groups) for what, values in random.items()}
            for what, values in features(runtime, clips).items():
                row = {"weights": weights, "curve": args.curve, "seen": seen, "task": task, "features": what}
                right = ridge_probe(values, labels, groups)
                row |= {"rankme": rank_me(values)} | compared(right, groups, untrained=known[shape][what], logmel=logmel)
                report(row, args.out)


def read_clips(sound: Path, task: str) -> tuple[Clips, np.ndarray, np.ndarray]:
    """A task's clips, labels and groups."""
    rows = list(csv.DictReader((sound / f"{task}.csv").open()))
    clips = [torch.from_numpy(np.load(sound / "lms" / Path(row["file_name"]).with_suffix(".npy"))).float() for row in rows]
    return clips, *(np.array([row[column] for row in rows]) for column in ("label", "group"))


@torch.no_grad()
def features(runtime: RuntimeM2D, clips: Clips) -> dict[str, torch.Tensor]:
    """Features of all clips `[N, width]`: of the last block or of it and the middle one, the mean or mean and deviation."""
    rows: list = [None] * len(clips)
    by_length: dict[int, list[int]] = {}
    for i, clip in enumerate(clips):
        by_length.setdefault(clip.shape[-1], []).append(i)
    for indices in by_length.values():
        for begin in range(0, len(indices), BATCH):
            picked = indices[begin : begin + BATCH]
            batch = runtime.normalize_batch(torch.stack([clips[i] for i in picked]))
            layers = runtime.encode_lms(batch, return_layers=True)
            for i, middle, last in zip(picked, layers[len(layers) // 2 - 1], layers[-1], strict=True):
                rows[i] = (statistics(middle), statistics(last))
    middle, last = (torch.stack(layer) for layer in zip(*rows, strict=True))
    return {
        "last, mean": last[:, : last.shape[1] // 2],
        "last, mean and deviation": last,
        "middle and last, mean and deviation": torch.cat([middle, last], dim=1),
    }


def compared(right: np.ndarray, groups: np.ndarray, **others: np.ndarray) -> dict:
    """Accuracy, and differences to others on the same clips, each with its 95 % interval."""
    figures: dict = {"accuracy": [float(right.mean()), *interval(right, groups)]}
    for name, other in others.items():
        difference = right.astype(float) - other
        figures[name] = float(other.mean())
        figures[f"minus_{name}"] = [float(difference.mean()), *interval(difference, groups)]
    return figures


def report(row: dict, out: Path) -> None:
    """One line for people, one of JSON."""
    untrained, logmel = ("{:+.3f} ({:+.2f} to {:+.2f})".format(*row[f"minus_{name}"]) for name in ("untrained", "logmel"))
    differences = f"- untrained {untrained}  - log-mel {logmel}"
    print(f"{row['weights'][-40:]:40} {row['task']:12} {row['features']:36} {row['accuracy'][0]:.3f}  {differences}", flush=True)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
