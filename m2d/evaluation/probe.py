"""What a classifier reads from an encoder's features, on clips of groups that it was not fitted on.

A linear probe (logistic regression) and the nearest neighbours judge the same clips for every encoder, so that differences
between encoders are paired. Beside the encoders come their untrained selves and the log-mel's statistics: an encoder that does
not beat those has learned nothing that these classes need.
"""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from ..utils.parallel import Progress
from .labelled_clips import LabelledClips
from .logistic import STRENGTHS, LogisticRegression
from .scores import MULTI_LABEL, SINGLE_LABEL, Metric, interval, resampling_weights

logger = logging.getLogger("m2d")

NEIGHBOURS = 10
_TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al., CVPR 2018)
_INNER_FOLDS = 3
_MANY_CLIPS = 5000  # of which one inner fold is enough
_ROWS_AT_ONCE = 2048
_MOST_FOLD_CLASSES = 1000


@dataclass(frozen=True)
class Split:
    """Rows to fit on and rows to judge by; `val` are rows to choose the regularisation by (none: by inner folds)."""

    train: np.ndarray
    test: np.ndarray
    val: np.ndarray | None = None


@dataclass
class Judgement:
    """Scores of the judged clips, and figures with their 95% intervals.

    Attributes:
        linear, neighbours: scores `[n, C]` of the clips in `Protocol.judged`.
        strengths: the regularisation chosen in each fold.
        figures: name, such as `linear/accuracy`, to (value, low, high).
        resampled: name to the metric's values `[1 + resamples]`, for paired differences.
    """

    linear: np.ndarray
    neighbours: np.ndarray
    strengths: list[float]
    figures: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    resampled: dict[str, np.ndarray] = field(default_factory=dict)

    def difference(self, other: "Judgement", name: str) -> tuple[float, float, float]:
        """How much better this is than another, on the same resampled clips: (difference, low, high)."""
        return interval(self.resampled[name] - other.resampled[name])


class Protocol:
    """How clips are judged: the same folds, clips and resamples for every encoder.

    Args:
        clips: what is judged.
        folds: parts of a cross-validation over groups; without effect where the clips have splits.
        seed: of the folds and resamples.
        device: where classifiers are fitted.
    """

    def __init__(self, clips: LabelledClips, folds: int = 5, seed: int = 0, device: torch.device | str = "cpu"):
        self.clips, self.seed, self.device = clips, seed, device
        self.metrics: dict[str, Metric] = MULTI_LABEL if clips.multi_label else SINGLE_LABEL
        self.splits = list(self._outer(folds))
        self.judged = np.concatenate([split.test for split in self.splits])
        self._weights = resampling_weights(clips.groups[self.judged], seed)
        self._targets = torch.from_numpy(clips.targets)

    def _outer(self, folds: int) -> Iterator[Split]:
        clips = self.clips
        if clips.splits is not None:
            train, val, test = (np.flatnonzero(clips.splits == name) for name in ("train", "val", "test"))
            yield Split(train, test, val if len(val) else None)
            return
        rows = np.arange(len(clips))
        for train, test in self._folds(rows, folds, self.seed):
            yield Split(train, test)

    def _folds(self, rows: np.ndarray, folds: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts of clips, whole groups in each, classes spread evenly where a clip has one."""
        groups = self.clips.groups[rows]
        targets = self.clips.targets[rows]
        largest = len(rows) if self.clips.multi_label else np.bincount(targets).max()
        folds = max(2, min(folds, len(np.unique(groups)), largest))
        if self.clips.multi_label or len(self.clips.classes) > _MOST_FOLD_CLASSES:
            splitter = GroupKFold(folds, shuffle=True, random_state=seed)
        else:
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than folds: the rest is spread evenly
            parts = list(splitter.split(rows, targets, groups))
        for train, test in parts:
            yield rows[train], rows[test]

    def judge(self, features: np.ndarray, name: str = "") -> Judgement:
        """Fit and judge both classifiers.

        Args:
            features: float32 `[N, width]`, finite.
            name: what they are, for the log.
        """
        x = torch.from_numpy(features)
        solver = LogisticRegression(x, self._targets, len(self.clips.classes), self.device)
        logger.info("%s: fitting classifiers of %d features", name, x.shape[1])
        linear, near, strengths = [], [], []
        inner = [self._inner(split) for split in self.splits]
        with Progress(sum(map(len, inner)) + len(inner), "fit") as progress:
            for split, parts in zip(self.splits, inner, strict=True):
                strength = self._choose(solver, parts, progress)
                strengths.append(strength)
                fitted = np.concatenate([split.train, split.val]) if split.val is not None else split.train
                classifier = solver.fit(torch.from_numpy(fitted), strength)
                held_out = torch.from_numpy(split.test).to(solver.features.device)
                linear.append(classifier.scores(solver.features[held_out]).cpu())
                near.append(neighbour_scores(solver.features, self._targets, len(self.clips.classes), fitted, split.test).cpu())
                progress.update()
        judgement = Judgement(torch.cat(linear).numpy(), torch.cat(near).numpy(), strengths)
        targets = self.clips.targets[self.judged]
        for metric_name, metric in self.metrics.items():
            for kind, scores in (("linear", judgement.linear), ("knn", judgement.neighbours)):
                values = metric(scores, targets, self._weights)
                judgement.resampled[f"{kind}/{metric_name}"] = values
                judgement.figures[f"{kind}/{metric_name}"] = interval(values)
        return judgement

    def _inner(self, split: Split) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows to fit on and rows to choose the regularisation by, none of which the classifiers are judged by."""
        if split.val is not None:
            return [(split.train, split.val)]
        inner = list(self._folds(split.train, _INNER_FOLDS, self.seed + 1))
        return inner[:1] if len(split.train) > _MANY_CLIPS else inner

    def _choose(self, solver: LogisticRegression, inner: list[tuple[np.ndarray, np.ndarray]], progress: Progress) -> float:
        """The regularisation with the best mean score over the inner folds, each of which counts as one step of progress."""
        metric = next(iter(self.metrics.values()))
        totals = np.zeros(len(STRENGTHS))
        for fitted, held_out in inner:
            once = np.ones((1, len(held_out)))
            rows = torch.from_numpy(held_out).to(solver.features.device)
            for i, classifier in enumerate(solver.path(torch.from_numpy(fitted))):
                scores = classifier.scores(solver.features[rows]).cpu().numpy()
                totals[i] += np.nan_to_num(metric(scores, self.clips.targets[held_out], once)[0])
            progress.update()
        return STRENGTHS[int(totals.argmax())]


def neighbour_scores(
    features: torch.Tensor, targets: torch.Tensor, classes: int, fitted: np.ndarray, judged: np.ndarray, k: int = NEIGHBOURS
) -> torch.Tensor:
    """Votes of the k nearest clips by cosine, each with the weight exp(cosine / 0.07): `[judged, C]`.

    Args:
        features: `[N, width]`; they are centred by the mean of the fitted rows.
        targets: class indices `[N]` or multi-hot labels `[N, C]`.
        fitted, judged: rows.
    """
    device = features.device
    known = features[torch.from_numpy(fitted).to(device)]
    centre = known.mean(dim=0)
    known = F.normalize(known - centre)
    labels = targets[torch.from_numpy(fitted)].to(device)
    votes = labels.float() if labels.ndim == 2 else None
    scores = []
    for rows in torch.from_numpy(judged).to(device).split(_ROWS_AT_ONCE):
        cosine, nearest = (F.normalize(features[rows] - centre) @ known.T).topk(min(k, len(known)))
        weights = ((cosine - 1) / _TEMPERATURE).exp()
        if votes is None:
            scores.append(torch.zeros(len(rows), classes, device=device).scatter_add_(1, labels[nearest], weights))
        else:
            scores.append((votes[nearest] * weights[..., None]).sum(dim=1))
    return torch.cat(scores)
