"""What a run measures of itself: validation loss, label-free quality, and the hand-off to EVAR."""

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..data.dataset import AudioDataset, Batch
from ..data.sampler import SampleKey
from ..evaluation.label_free import GramAccumulator
from .distributed import sum_over_ranks, together
from .trainer import TERM_NAMES, Trainer

VALIDATION_CLIPS = 2048
QUALITY_CLIPS = 1000
#: Fewer clips than this say nothing about a representation.
QUALITY_MIN_CLIPS = 32

#: Variables of torchrun that would make a program started from here think itself one of the run's processes.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_")

logger = logging.getLogger("m2d")


def fixed_batches(dataset: AudioDataset, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """The same crops of up to `count` evenly spread clips at each call, dealt to the ranks."""
    clips = len(dataset.clips)
    count = min(count, clips)
    indices = np.arange(count) * clips // count
    keys = [SampleKey(0, position, int(index)) for position, index in enumerate(indices)][rank::world_size]
    for begin in range(0, len(keys), batch_size):
        yield dataset.__getitems__(keys[begin : begin + batch_size])


@torch.no_grad()
def validation_losses(trainer: Trainer, model: nn.Module, dataset: AudioDataset) -> dict[str, float]:
    """Mean losses over at most VALIDATION_CLIPS clips of a data set, by name: `val_loss` and its parts."""
    model.eval()
    launch = trainer.launch

    def sum_of_mine() -> torch.Tensor:
        sums = torch.zeros(len(TERM_NAMES) + 1, dtype=torch.float64)
        for batch in fixed_batches(dataset, VALIDATION_CLIPS, trainer.args.batch_size, launch.rank, launch.world_size):
            terms = trainer.losses(model, batch).double().cpu()
            clips = len(batch["index"])
            sums[: len(terms)] += terms * clips
            sums[-1] += clips
        return sums

    sums = sum_over_ranks(together(launch, sum_of_mine))
    return {f"val_{name}": float(total / sums[-1]) for name, total in zip(model.loss_names, sums, strict=False)}


@torch.no_grad()
def label_free_quality(trainer: Trainer, model: nn.Module, dataset: AudioDataset, prefix: str) -> dict[str, float]:
    """RankMe (Garrido et al., 2023) and AUC of the cumulative explained variance (Li et al., 2022).

    Of the unmasked encoder's patch embeddings of about QUALITY_CLIPS clips; nothing, with a reason, for very few clips.
    """
    clips = min(len(dataset.clips), QUALITY_CLIPS)
    if clips < QUALITY_MIN_CLIPS:
        logger.info("label-free quality: left out, since %d clips are fewer than %d", clips, QUALITY_MIN_CLIPS)
        return {}
    model.eval()
    gram = GramAccumulator()
    for batch in fixed_batches(dataset, QUALITY_CLIPS, trainer.args.batch_size):
        with trainer.autocast():
            inputs = trainer.inputs.clean(batch)
            tokens = model.forward_encoder(inputs, mask_ratio=0.0)[0]
        gram.update(model.drop_cls_token(tokens).flatten(0, 1).float())
    return {f"{prefix}_rankme": gram.rank_me(), f"{prefix}_auc": gram.auc()}


def hand_to_evar(script: str, checkpoint: Path, wait: bool) -> None:
    """Start `quick_eval.sh` or `all_eval.sh` for a checkpoint; whatever becomes of it, the training goes on.

    The script is taken from the working folder, where users keep their own, else from beside the m2d package.
    """
    here = Path(__file__).resolve().parents[2]
    path = next((p for p in (Path(script), here / script) if p.exists()), None)
    if path is None:
        logger.info("%s is not here: %s is not evaluated", script, checkpoint)
        return
    log = checkpoint.with_suffix(".eval.txt")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER)}
    try:
        with log.open("w") as output:
            command = ["bash", str(path), str(checkpoint.resolve())]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        logger.info("%s %s: see %s", script, checkpoint, log)
        if wait and process.wait():
            logger.warning("%s ended with exit status %d: see %s", script, process.returncode, log)
    except OSError as error:
        logger.warning("%s could not be started: %s", script, error)
