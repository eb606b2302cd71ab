"""Fine-tune a pre-trained model to classify segments of recordings.

    python app/finetune.py data/icbhi2017_segments.csv --weights CHECKPOINT --output_dir runs/icbhi --freeze_embed

The list names log-mel spectrograms and tells start, end, label and split of each segment (the prepare_*.py programs write
such lists). It is `m2d finetune` with another data set, classifier and files. The model is the checkpoint's encoder and a linear
layer on its features averaged over time; all of it is trained. Where the list has a split 'valid', the epoch with the best score
on it is kept and tested; otherwise the last one is.

In the output folder: log.jsonl (an entry per epoch), checkpoint.pth (see load_classifier), predictions.csv (of the test split).
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.scores import main_score, scores, unit_probabilities
from app.segments import SegmentDataset, read_segments, write_csv
from m2d.checkpoint.spec import ModelSpec, agreed_spec
from m2d.checkpoint.weights import load_file, save_atomically
from m2d.finetune.training import BEST, ClipClassifier, FineTuning, Settings
from m2d.inference.runtime import Config, RuntimeM2D
from m2d.train.distributed.launch import start
from m2d.utils.device import pick_device
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")

#: What is not as in `m2d finetune`: a classifier without batch norm, AdamW, no augmentation but a random start.
RECIPE = dict(optim="adamw", mixup=0.0, freq_mask=0, time_mask=0, rrc=False)
SETTINGS = ("weights", "epochs", "warmup_epochs", "batch_size", "split_iter", "lr", "weight_decay")
SETTINGS += ("freeze_embed", "training_mask", "dur_frames", "bf16", "seed")
LOG, CHECKPOINT, PREDICTIONS = "log.jsonl", "checkpoint.pth", "predictions.csv"


class SegmentClassifier(RuntimeM2D):
    """An encoder and a linear layer on its features averaged over time: log-mel `[B, 1, n_mels, frames]` to logits.

    Args:
        classes: label names.
        settings: attributes of a runtime's Config (weight_file, dur_frames, freeze_embed, training_mask).
    """

    def __init__(self, classes: list[str], **settings):
        super().__init__(Config(**settings))
        self.classes = list(classes)
        self.classifier = nn.Linear(self.cfg.feature_d, len(self.classes))

    @property
    def spec(self) -> ModelSpec:
        """The encoder's sizes, as programs that read the saved classifier need them."""
        return ModelSpec(self.cfg.input_size, self.cfg.patch_size, self.cfg.sr, self.cfg.model)

    def set_statistics(self, mean: float, std: float) -> None:
        """Normalise by these from now on; they are saved with the weights."""
        self.cfg.mean, self.cfg.std = mean, std
        with torch.no_grad():
            self.backbone.norm_stats.copy_(torch.tensor([mean, std]))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(features)

    def forward(self, lms: torch.Tensor) -> torch.Tensor:
        return self.classify(self.encode_lms(self.normalize_batch(lms)).mean(dim=1))


def load_classifier(path: Path) -> SegmentClassifier:
    """A fine-tuned classifier, ready to classify: `model(log_mel)` gives logits, `model.classes` their names."""
    saved = load_file(path)
    model = SegmentClassifier(saved["classes"], **saved["settings"])
    model.load_state_dict(saved["model"])
    model.set_statistics(*model.backbone.norm_stats.tolist())
    return model


def save_classifier(model: SegmentClassifier, path: Path) -> None:
    """Save a classifier so that `load_classifier`, and the programs that embed and tag, need nothing but the file."""
    cfg, spec = model.cfg, model.spec
    settings = {
        "weight_file": f"{spec}-random",
        "dur_frames": cfg.dur_frames,
        "freeze_embed": cfg.freeze_embed,
        "training_mask": cfg.training_mask,
    }
    saved = {"model": model.state_dict(), "classes": model.classes, "single_label": True, "settings": settings}
    save_atomically({**saved, "args": spec._asdict()}, path)


class SegmentTuning(FineTuning):
    """Fine-tuning that judges units, such as patients, by the mean probability of their segments, and keeps the app's files.

    Args:
        args: the command line.
        model: what to train.
        sets: segments by split; an epoch is judged by 'valid' where there is one, else the last one is kept.
    """

    def __init__(self, args: argparse.Namespace, model: SegmentClassifier, sets: dict[str, SegmentDataset]):
        self.judges = "valid" in sets
        super().__init__(
            Settings(**RECIPE, **{name: getattr(args, name) for name in SETTINGS}),
            ClipClassifier(model, per_step=False),
            sets["train"],
            sets["valid" if self.judges else "test"],
            model.classes,
            single_label=True,
            folder=args.output_dir,
            launch=start(str(pick_device(args.device))),
            workers=max(1, args.num_workers),
        )
        self.metric_name = main_score(model.classes)

    def predictions(self, segments: SegmentDataset) -> pd.DataFrame:
        """Probabilities of each unit of a split: columns unit, label, predicted, and one per class."""
        logits = torch.from_numpy(self.predict(segments)[0]).double()
        targets = segments.targets.argmax(axis=1)
        units, mean, targets = unit_probabilities(segments.table["unit"].to_numpy(), logits.softmax(dim=1).numpy(), targets)
        names = np.array(self.classes, dtype=object)
        result = pd.DataFrame({"unit": units, "label": names[targets], "predicted": names[mean.argmax(axis=1)]})
        return pd.concat([result, pd.DataFrame(mean, columns=self.classes)], axis=1)

    def validate(self) -> dict[str, float]:
        """Scores of the units of the split 'valid'."""
        return score_table(self.predictions(self.validation_set), self.classes) if self.judges else {}

    def is_best(self, scores: dict[str, float]) -> bool:
        """Without a split 'valid': the last epoch is."""
        return super().is_best(scores) if self.judges else self.progress.epoch == self.settings.epochs

    def report(self, loss: float, scores: dict[str, float], seconds: float) -> None:
        """Log an epoch."""
        entry = {"epoch": self.progress.epoch, "loss": loss, **({"valid": scores} if self.judges else {})}
        logger.info("%s", "  ".join(f"{k} {v:.4f}" for k, v in {"loss": loss, **scores}.items()))
        with (self.folder / LOG).open("a") as log:
            log.write(json.dumps(entry) + "\n")

    def save(self, name: str) -> None:
        """Write checkpoint.pth; a run is not resumed, so there is no other."""
        if name == BEST and self.launch.is_main:
            save_classifier(self.model.runtime, self.folder / CHECKPOINT)

    def resume(self) -> None:
        """A run starts from the beginning."""
        if self.launch.is_main:
            (self.folder / LOG).write_text("")

    def load_best(self) -> None:
        """Take the weights of checkpoint.pth."""
        self.model.runtime.load_state_dict(load_file(self.folder / CHECKPOINT)["model"])


def score_table(result: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """Scores of the units of a split (see `scores`)."""
    index = {name: i for i, name in enumerate(classes)}
    return scores(result["label"].map(index).to_numpy(), result["predicted"].map(index).to_numpy(), classes)


def fine_tune(args: argparse.Namespace) -> None:
    """Train, keep the best or the last epoch, and log the scores on the test split."""
    outputs = [args.output_dir / name for name in (LOG, CHECKPOINT, PREDICTIONS)]
    check_outputs(outputs, [args.segments, args.weights, *Path(args.weights).glob("*.pth")], args.overwrite)
    table = read_segments(args.segments)
    torch.manual_seed(args.seed)
    config = dict(dur_frames=args.dur_frames, freeze_embed=args.freeze_embed, training_mask=args.training_mask)
    model = SegmentClassifier(sorted(table["label"].unique()), weight_file=args.weights, **config)
    agreed_spec(args.output_dir / CHECKPOINT, model.spec._asdict())  # refuses a folder whose name tells other sizes
    data_path = args.segments.parent if args.data_path is None else args.data_path
    frames = model.cfg.input_size[1]
    splits = table.groupby("split", sort=False)
    sets = {split: SegmentDataset(rows, data_path, model.classes, frames) for split, rows in splits}
    model.set_statistics(*sets["train"].statistics())
    args.output_dir.mkdir(parents=True, exist_ok=True)
    run = SegmentTuning(args, model, sets)
    run.run()
    run.load_best()
    result = run.predictions(sets["test"])
    write_csv(result, args.output_dir / PREDICTIONS)
    for name, value in score_table(result, model.classes).items():
        logger.info("test %s %.4f", name, value)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("segments", type=Path, help="the list of labelled segments")
    parser.add_argument("--weights", required=True, help="checkpoint to start from")
    parser.add_argument("--output_dir", "--out", type=Path, required=True, help="folder for what comes out")
    parser.add_argument(
        "--data_path", type=Path, default=None, help="what file names are relative to; the list's folder if not given"
    )
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--warmup_epochs", type=int, default=0)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--split_iter", type=int, default=1, help="number of parts that a batch is computed in, to save memory")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--weight_decay", type=float, default=1e-2)
    parser.add_argument("--dur_frames", type=int, default=801, help="frames (10 ms each) of a segment; 801 is 8 s")
    parser.add_argument("--freeze_embed", action="store_true", help="do not train the patch embedding")
    parser.add_argument("--training_mask", type=float, default=0.0, help="share of the patches hidden in training")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    parser.add_argument("--num_workers", "--workers", type=int, default=4)
    parser.add_argument("--overwrite", action="store_true", help=OVERWRITE_HELP)
    args = parser.parse_args(argv)
    if min(args.epochs, args.batch_size, args.split_iter) < 1 or args.num_workers < 0 or args.warmup_epochs < 0:
        parser.error("--epochs, --batch_size and --split_iter are at least 1; --warmup_epochs and --num_workers not below 0")
    return args


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    args = parse_args(argv)
    return run_program(lambda: fine_tune(args))


if __name__ == "__main__":
    sys.exit(main())
