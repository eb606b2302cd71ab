"""What a run measures of itself: validation loss and label-free quality."""

import logging
from collections.abc import Iterator

import numpy as np
import torch

from ...data.batch import Batch
from ...data.captions.dataset import CaptionDataset
from ...data.dataset import AudioDataset
from ...data.sampler import SampleKey
from ...evaluation.label_free import GramAccumulator
from ...models.masked_vit import MaskedPredictorViT
from ..distributed.collectives import from_rank0, run_on_all_ranks, sum_over_ranks
from ..distributed.fsdp import full_model
from ..setup import DataSets
from ..trainer import Trainer
from .retrieval import retrieval

VALIDATION_CLIPS = 2048
QUALITY_CLIPS = 1000
#: Fewer clips than this say nothing about a representation.
QUALITY_MIN_CLIPS = 32

logger = logging.getLogger("m2d")


def fixed_batches(dataset: AudioDataset, count: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
    """The same crops of up to `count` evenly spread clips at each call, split over the ranks."""
    clips = len(dataset.clips)
    count = min(count, clips)
    indices = np.arange(count) * clips // count
    keys = [SampleKey(0, position, int(index)) for position, index in enumerate(indices)][rank::world_size]
    for begin in range(0, len(keys), batch_size):
        yield dataset.__getitems__(keys[begin : begin + batch_size])


def evaluate(trainer: Trainer, data: DataSets, epochs_done: int) -> dict[str, float]:
    """Figures of an epoch by name: validation losses, and when due label-free quality and the probe; all ranks call this."""
    output = trainer.settings.output
    quality_is_due = output.feature_eval_freq > 0 and epochs_done % output.feature_eval_freq == 0
    probe_is_due = output.probe and (epochs_done % output.probe_freq == 0 or epochs_done == trainer.last_epoch)
    if not (data.val or quality_is_due or probe_is_due):
        return {}
    model = full_model(trainer)
    figures = validation_losses(trainer, model, data.val) if data.val else {}
    if isinstance(data.val, CaptionDataset):
        val = data.val
        figures |= from_rank0(trainer.launch, lambda: retrieval(trainer, model, val, VALIDATION_CLIPS))
    if figures:
        logger.info("epoch %d  %s", epochs_done, _text(figures))
    if quality_is_due:
        quality = from_rank0(trainer.launch, lambda: _quality_of_all(trainer, model, data))
        if quality:
            logger.info("epoch %d  %s", epochs_done, _text(quality))
        figures |= quality
    if probe_is_due:
        from .online_probe import probe_figures  # imports scikit-learn, which takes a second

        probe = from_rank0(trainer.launch, lambda: probe_figures(trainer, model))
        logger.info("epoch %d  %s", epochs_done, _text(probe))
        figures |= probe
    return figures


def _text(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items())


def _quality_of_all(trainer: Trainer, model: MaskedPredictorViT, data: DataSets) -> dict[str, float]:
    quality = label_free_quality(trainer, model, data.train, "train")
    return quality | (label_free_quality(trainer, model, data.val, "val") if data.val else {})


@torch.no_grad()
def validation_losses(trainer: Trainer, model: MaskedPredictorViT, dataset: AudioDataset) -> dict[str, float]:
    """Mean losses over at most VALIDATION_CLIPS clips of a data set, by name: `val_loss` and its parts.

    Where a loss compares clips with each other, rank 0 computes it with as many of them as all ranks have in a step.
    """
    model.eval()
    launch, batch_size = trainer.launch, trainer.settings.run.batch_size
    rank, ranks = launch.rank, launch.world_size
    if model.is_contrastive:
        batch_size, ranks = batch_size * ranks, 1

    def sum_of_this_rank() -> torch.Tensor:
        sums = torch.zeros(len(trainer.model.loss_names) + 1, dtype=torch.float64)
        for batch in fixed_batches(dataset, VALIDATION_CLIPS, batch_size, rank, ranks) if rank < ranks else ():
            losses = torch.stack(list(trainer.losses(model, batch).values())).double().cpu()
            sums[:-1] += losses * len(batch)
            sums[-1] += len(batch)
        return sums

    *totals, clips = sum_over_ranks(run_on_all_ranks(launch, sum_of_this_rank))
    return {f"val_{name}": float(total / clips) for name, total in zip(trainer.model.loss_names, totals, strict=True)}


@torch.no_grad()
def label_free_quality(trainer: Trainer, model: MaskedPredictorViT, dataset: AudioDataset, prefix: str) -> dict[str, float]:
    """RankMe (Garrido et al., 2023) and AUC of the cumulative explained variance (Li et al., 2022).

    Of the unmasked encoder's patch embeddings of about QUALITY_CLIPS clips; nothing, with a reason, for very few clips.
    """
    clips = min(len(dataset.clips), QUALITY_CLIPS)
    if clips < QUALITY_MIN_CLIPS:
        logger.info("label-free quality: not measured: %d clips are fewer than %d", clips, QUALITY_MIN_CLIPS)
        return {}
    model.eval()
    gram = GramAccumulator()
    for batch in fixed_batches(dataset, QUALITY_CLIPS, trainer.settings.run.batch_size):
        with trainer.autocast():
            inputs = trainer.transform.clean(batch)
            tokens = model.forward_encoder(inputs, mask_ratio=0.0)[0]
        gram.update(model.drop_cls_token(tokens).flatten(0, 1).float())
    return {f"{prefix}_rankme": gram.rank_me(), f"{prefix}_auc": gram.auc()}
