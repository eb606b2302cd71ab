"""Fine-tune a pre-trained model to classify segments of recordings.

    python app/finetune.py data/icbhi2017_segments.csv --weights CHECKPOINT --output_dir runs/icbhi --freeze_embed

The list names log-mel spectrograms and tells start, end, label and split of each segment (the prepare_*.py programs write
such lists). The model is the checkpoint's encoder and a linear layer on its features averaged over time; all of it is trained.
Where the list has a split 'valid', the epoch with the best score on it is kept and tested; otherwise the last one is.

In the output folder: log.jsonl (an entry per epoch), checkpoint.pth (see load_classifier), predictions.csv (of the test split).
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app.scores import main_score, scores, unit_probabilities
from app.segments import SegmentDataset, read_segments, write_csv
from m2d.checkpoint.spec import ModelSpec, agreed_spec
from m2d.checkpoint.weights import load_file, save_atomically
from m2d.data.rng import Purpose, permutation
from m2d.inference.runtime import Config, RuntimeM2D
from m2d.train.optim import learning_rate
from m2d.utils.device import pick_device
from m2d.utils.outputs import OVERWRITE_HELP, check_outputs
from m2d.utils.program import ArgumentParser, run_program

logger = logging.getLogger("m2d")


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

    def forward(self, lms: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.encode_lms(self.normalize_batch(lms)).mean(dim=1))


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


def precision(args: argparse.Namespace) -> torch.autocast:
    """The arithmetic of a forward pass."""
    return torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.bf16)


def loader(segments: SegmentDataset, args: argparse.Namespace, order: np.ndarray | None = None) -> DataLoader:
    """Batches of segments, in their order or in another."""
    sampler = None if order is None else order.tolist()
    return DataLoader(segments, args.batch_size, sampler=sampler, num_workers=args.num_workers)


def train_epoch(
    model: SegmentClassifier,
    batches: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[float], float],
    args: argparse.Namespace,
) -> float:
    """One pass over the training segments; returns the mean loss.

    Each batch is computed in --split_iter parts whose gradients add up to the whole batch's, to save memory.
    """
    model.train()
    total = torch.zeros((), device=model.classifier.weight.device)
    for step, (lms, targets, _) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule(step / len(batches))
        optimizer.zero_grad(set_to_none=True)
        for part, part_targets in zip(lms.chunk(args.split_iter), targets.chunk(args.split_iter), strict=True):
            with precision(args):
                logits = model(part.to(total.device, non_blocking=True))
            loss = F.cross_entropy(logits.float(), part_targets.to(total.device), reduction="sum") / len(lms)
            loss.backward()
            total += loss.detach()
        optimizer.step()
    mean = (total / len(batches)).item()
    if not np.isfinite(mean):
        raise ValueError("the loss is not finite any more: lower --lr, or look for damaged spectrograms")
    return mean


@torch.inference_mode()
def evaluate(model: SegmentClassifier, batches: DataLoader, autocast: torch.autocast) -> pd.DataFrame:
    """Probabilities of each unit of a split: columns unit, label, predicted, and one per class."""
    model.eval()
    device, table = model.classifier.weight.device, batches.dataset.table
    probabilities = np.zeros((len(table), len(model.classes)))
    for lms, _, rows in batches:
        with autocast:
            logits = model(lms.to(device, non_blocking=True))
        probabilities[rows.numpy()] = logits.float().softmax(dim=1).cpu().numpy()
    units, mean, targets = unit_probabilities(table["unit"].to_numpy(), probabilities, batches.dataset.targets)
    names = np.array(model.classes, dtype=object)
    result = pd.DataFrame({"unit": units, "label": names[targets], "predicted": names[mean.argmax(axis=1)]})
    return pd.concat([result, pd.DataFrame(mean, columns=model.classes)], axis=1)


def score_table(result: pd.DataFrame, classes: list[str]) -> dict[str, float]:
    """Scores of the units of a split (see `scores`)."""
    index = {name: i for i, name in enumerate(classes)}
    return scores(result["label"].map(index).to_numpy(), result["predicted"].map(index).to_numpy(), classes)


def fine_tune(args: argparse.Namespace) -> None:
    """Train, keep the best or the last epoch, and log the scores on the test split."""
    torch.manual_seed(args.seed)
    outputs = [args.output_dir / name for name in ("log.jsonl", "checkpoint.pth", "predictions.csv")]
    check_outputs(outputs, [args.segments, args.weights, *Path(args.weights).glob("*.pth")], args.overwrite)
    args.device = pick_device(args.device)
    table = read_segments(args.segments)
    classes = sorted(table["label"].unique())
    settings = dict(dur_frames=args.dur_frames, freeze_embed=args.freeze_embed, training_mask=args.training_mask)
    model = SegmentClassifier(classes, weight_file=args.weights, **settings).to(args.device)
    data_path = args.segments.parent if args.data_path is None else args.data_path
    frames = model.cfg.input_size[1]
    sets = {split: SegmentDataset(rows, data_path, classes, frames) for split, rows in table.groupby("split", sort=False)}
    model.set_statistics(*sets["train"].statistics())
    agreed_spec(args.output_dir / "checkpoint.pth", model.spec._asdict())  # refuses a folder whose name tells other sizes
    args.output_dir.mkdir(parents=True, exist_ok=True)
    train(model, sets, args)
    model.load_state_dict(load_file(args.output_dir / "checkpoint.pth")["model"])
    result = evaluate(model, loader(sets["test"], args), precision(args))
    write_csv(result, args.output_dir / "predictions.csv")
    for name, value in score_table(result, classes).items():
        logger.info("test %s %.4f", name, value)


def train(model: SegmentClassifier, sets: dict[str, SegmentDataset], args: argparse.Namespace) -> None:
    """All epochs; writes log.jsonl, and checkpoint.pth where an epoch is the best on 'valid' or, without one, the last."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=args.weight_decay)
    judged, best = main_score(model.classes), -1.0
    with (args.output_dir / "log.jsonl").open("w") as log:
        for epoch in tqdm(range(args.epochs), unit="epoch", disable=None):
            sets["train"].set_epoch(args.seed, epoch)
            batches = loader(sets["train"], args, permutation(args.seed, epoch, Purpose.ORDER, len(sets["train"])))

            def schedule(done: float, epoch: int = epoch) -> float:
                return learning_rate(epoch + done, args.lr, 0.0, args.warmup_epochs, args.epochs)

            entry = {"epoch": epoch + 1, "loss": train_epoch(model, batches, optimizer, schedule, args)}
            keep = epoch + 1 == args.epochs
            if "valid" in sets:
                entry["valid"] = score_table(evaluate(model, loader(sets["valid"], args), precision(args)), model.classes)
                keep = entry["valid"][judged] > best
                best = max(best, entry["valid"][judged])
            if keep:
                save_classifier(model, args.output_dir / "checkpoint.pth")
            log.write(json.dumps(entry) + "\n")
            log.flush()


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
