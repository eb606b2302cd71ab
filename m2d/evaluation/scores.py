"""How well scores name the classes of held-out clips, and how sure that is: intervals by resampling whole groups."""

from collections.abc import Callable

import numpy as np

_RESAMPLES = 1000, 100  # at most, and at least where the clips are many
_WEIGHT_VALUES = 1 << 24


def accuracy(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of clips whose highest score is their class's.

    Args (of every metric here):
        scores: `[N, C]`.
        targets: class indices `[N]`, or multi-hot labels `[N, C]` where the metric is one of labels.
        weights: how often each clip counts, `[R, N]`, a row per resample.

    Returns:
        `[R]`.
    """
    right = scores.argmax(axis=1) == targets
    return weights @ right / weights.sum(axis=1)


def macro_f1(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over classes of the harmonic mean of precision and recall; classes without a clip and a prediction do not count."""
    predicted, classes = scores.argmax(axis=1), scores.shape[1]
    # [R, C] sums by class, of clips that are it, that are called it, and both
    is_it, called_it = (_sums_by_class(weights, index, classes) for index in (targets, predicted))
    both = _sums_by_class(weights * (predicted == targets), targets, classes)
    total = is_it + called_it
    return np.where(total > 0, 2 * both / np.where(total > 0, total, 1), 0).sum(axis=1) / (total > 0).sum(axis=1)


def _sums_by_class(weights: np.ndarray, index: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([np.bincount(index, row, classes) for row in weights])


def mean_average_precision(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over labels of the average precision: Σ (recall_k - recall_k-1) · precision_k over the ranking's thresholds.

    Labels that a resample holds no clip of do not count in it.
    """
    values = np.stack([_average_precision(s, t, weights) for s, t in zip(scores.T, targets.T, strict=True)])
    return np.nanmean(values, axis=0)


def _average_precision(scores: np.ndarray, is_it: np.ndarray, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # clips of equal scores come together
    ranked = weights[:, order]
    hits, seen = np.cumsum(ranked * is_it[order], axis=1)[:, ends], np.cumsum(ranked, axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    positives = hits[:, -1]
    sums = (gained * hits / np.maximum(seen, 1e-12)).sum(axis=1)
    return np.where(positives > 0, sums / np.where(positives > 0, positives, 1), np.nan)


Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
SINGLE_LABEL: dict[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1}
MULTI_LABEL: dict[str, Metric] = {"map": mean_average_precision}


def resampling_weights(groups: np.ndarray, seed: int = 0) -> np.ndarray:
    """How often each clip counts when whole groups are drawn with replacement: float32 `[1 + resamples, N]`.

    The first row counts every clip once. Clips of a group resemble each other, so that drawing clips one by one would make
    intervals too narrow.

    Args:
        groups: the group of each clip, `[N]`.
    """
    most, least = _RESAMPLES
    resamples = max(least, min(most, _WEIGHT_VALUES // len(groups)))
    _, index = np.unique(groups, return_inverse=True)
    count = index.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return np.concatenate([np.ones((1, len(groups))), drawn[:, index]]).astype(np.float32)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """The figure and its 95% interval, of a metric's values `[1 + resamples]`: percentiles of the resamples."""
    low, high = np.nanpercentile(values[1:], (2.5, 97.5))
    return float(values[0]), float(low), float(high)
