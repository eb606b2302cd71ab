"""How well the encoder separates labels while it trains: a linear probe and nearest neighbours on a list of labelled clips."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from ...evaluation.features import clip_features, pool
from ...evaluation.labelled_clips import LabelledClips, judgeable, read_labelled
from ...evaluation.probe import Protocol
from ...inference.pieces import Cutting
from ..config import Settings
from ..trainer import Trainer

MOST_CLIPS = 2000

logger = logging.getLogger("m2d")


def probe_clips(settings: Settings) -> LabelledClips:
    """The clips of --probe, at most MOST_CLIPS, the same at each call.

    Raises:
        OSError, UserError: nothing can be judged with the list.
    """
    source, folder = settings.output.probe, settings.data.data_path
    clips = judgeable(read_labelled(source, data_path="" if Path(source).is_dir() else folder))
    if len(clips) > MOST_CLIPS:
        clips = judgeable(clips[np.sort(np.random.default_rng(0).permutation(len(clips))[:MOST_CLIPS])])
    return clips


class EncoderInTraining:
    """The features of an encoder as it is now: means over time of all frequencies' outputs, as embedding has them.

    Args:
        trainer: gives precision and statistics.
        model: the whole model, in evaluation.
    """

    key = "in training"

    def __init__(self, trainer: Trainer, model: Any):
        self.rate = trainer.settings.model.sr
        self._trainer, self._model = trainer, model
        self._cutting = Cutting(model.patch_embed.img_size[1], model.patch_size()[1])

    @torch.no_grad()
    def of(self, lms: torch.Tensor) -> torch.Tensor:
        """Log-mel clips of one length, `[B, 1, n_mels, frames]`: float32 `[B, F·D]` on the CPU."""
        mean, std = self._trainer.transform.stats
        lengths = self._cutting.lengths(lms.shape[-1])
        x = (lms.to(self._trainer.launch.device) - mean) / std
        x = F.pad(x, (0, max(0, sum(lengths) - x.shape[-1])))[..., : sum(lengths)]
        steps = []
        for piece in x.split(lengths, dim=-1):
            with self._trainer.autocast():
                tokens = self._model.forward_encoder(piece, mask_ratio=0.0, adjust_short=True)[0]
            tokens = self._model.drop_cls_token(tokens).float()
            steps.append(rearrange(tokens, "b (f t) d -> b t (f d)", f=self._model.grid_size()[0]))
        return pool(torch.cat(steps, dim=1), "mean").cpu()


def probe_figures(trainer: Trainer, model: Any) -> dict[str, float]:
    """Accuracy, or mean average precision where clips have several labels, as `probe_linear` and `probe_knn`."""
    model.eval()
    clips = probe_clips(trainer.settings)
    workers = max(1, trainer.settings.machine.num_workers)
    features, readable = clip_features(EncoderInTraining(trainer, model), clips.paths, workers=workers)
    rows = np.flatnonzero(readable)
    judgement = Protocol(judgeable(clips[rows]), device=trainer.launch.device).judge(features[rows], "probe")
    metric = "map" if clips.multi_label else "accuracy"
    return {f"probe_{kind}": judgement.figures[f"{kind}/{metric}"][0] for kind in ("linear", "knn")}
