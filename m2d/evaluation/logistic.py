"""L2-regularised logistic regression for many clips of wide features: multinomial, or one binary classifier per label.

It minimises the mean cross-entropy plus `strength / 2 · ‖W‖²` (the intercept is not penalised) over standardised features, by
L-BFGS in a metric: the leading directions of the features' covariance, times how undecided the classifier is about each class,
plus the penalty. That is close to the Hessian, serves all classes and strengths, and makes the number of passes over the data
independent of the features' correlations, which for embeddings are strong.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..models.transformer.onednn import linear, onednn_is_faster

#: Strengths to choose from, strong to weak: each fit starts from the one before.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_BLOCK_VALUES = 1 << 26  # values of a block of features or scores
_DIRECTIONS = 256  # of the covariance that the metric knows
_STEPS_KEPT = 20  # by L-BFGS
_MOST_STEPS = 200
_TOLERANCE = 2e-6  # what a step would still gain of the loss, relative to the loss of equal scores
_ARMIJO = 1e-4  # share of the linear decrease that a step must reach
_LEAST_STEP = 1e-3
_LEAST_UNDECIDED = 1e-6

_USES_ONEDNN = onednn_is_faster()
_LEAST_PRODUCT = 1 << 24  # multiplications that pay for oneDNN's preparations


@dataclass(frozen=True)
class Classifier:
    """Scores `x · weight + bias`, for features as they come.

    Attributes:
        weight: `[D, C]`.
        bias: `[C]`.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Scores of features `[N, D]`: `[N, C]`, on the classifier's device."""
        return torch.cat([torch.addmm(self.bias, x, self.weight) for x in _blocks(features, *self.weight.shape)])


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`[N, K]` times the transpose of `[M, K]`."""
    is_large = x.numel() * len(weight) >= _LEAST_PRODUCT
    return linear(x, weight, bias) if _USES_ONEDNN and is_large else F.linear(x, weight, bias)


def _blocks(features: torch.Tensor, width: int, classes: int) -> Iterator[torch.Tensor]:
    yield from features.split(max(1, _BLOCK_VALUES // max(width, classes)))


def _standardisation(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each feature; 1 in place of a deviation of 0."""
    scale, mean = torch.std_mean(features, dim=0, correction=0)
    return mean, torch.where(scale > 1e-12, scale, torch.ones_like(scale))


class LogisticRegression:
    """Fits classifiers on subsets of the same clips.

    Args:
        features: `[N, D]`, finite.
        targets: class indices, int64 `[N]`; or multi-hot labels `[N, C]`, for one binary classifier per label.
        classes: C.
        device: where to compute.
    """

    def __init__(self, features: torch.Tensor, targets: torch.Tensor, classes: int, device: torch.device | str = "cpu"):
        self.features = features.to(device, torch.float32)
        self.targets = targets.to(device)
        self.classes = classes
        self.multi_label = targets.ndim == 2

    def path(self, rows: torch.Tensor, strengths: Sequence[float] = STRENGTHS) -> Iterator[Classifier]:
        """One classifier per strength, fitted on the clips `rows` (int64 `[n]`)."""
        rows = rows.to(self.features.device)
        x, targets = self.features[rows], self.targets[rows]
        mean, scale = _standardisation(x)
        x.sub_(mean).div_(scale)
        basis = None
        if 2 * len(x) < x.shape[1]:  # the weights are combinations of the clips: solve in the space that those span
            basis = torch.linalg.qr(x.T).Q
            x = x @ basis
        metric = _Metric.of(x)
        weights = torch.zeros(self.classes, x.shape[1] + 1, device=x.device)
        for strength in strengths:
            weights = self._minimise(weights, x, targets, strength, metric)
            weight = weights[:, :-1].T if basis is None else basis @ weights[:, :-1].T
            weight = weight / scale[:, None]
            yield Classifier(weight, weights[:, -1] - mean @ weight)

    def fit(self, rows: torch.Tensor, strength: float) -> Classifier:
        """A classifier of one strength."""
        return next(self.path(rows, [strength]))

    def _loss(self, weights: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, strength: float) -> "_Value":
        total = torch.zeros((), device=x.device, dtype=torch.float64)
        gradient = strength * weights
        gradient[:, -1] = 0
        undecided = weights.new_zeros(self.classes)
        weight = weights[:, :-1].contiguous()  # with strides, oneDNN is many times slower
        start = 0
        for block in _blocks(x, x.shape[1], self.classes):
            wanted = targets[start : start + len(block)]
            scores = _linear(block, weight, weights[:, -1])
            if self.multi_label:
                wanted = wanted.to(scores.dtype)
                total += F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum").double()
                p = scores.sigmoid_()
            else:
                total += F.cross_entropy(scores, wanted, reduction="sum").double()
                p = scores.softmax(dim=1)
            undecided += p.sum(dim=0) - p.square().sum(dim=0)
            if self.multi_label:
                errors = p.sub_(wanted).div_(len(x))
            else:
                p[torch.arange(len(block), device=x.device), wanted] -= 1
                errors = p.div_(len(x))
            gradient[:, :-1] += _linear(errors.T.contiguous(), block.T)
            gradient[:, -1] += errors.sum(dim=0)
            start += len(block)
        penalty = strength / 2 * weight.square().sum(dtype=torch.float64)
        return _Value((total / len(x) + penalty).item(), gradient, (undecided / len(x)).clamp_(min=_LEAST_UNDECIDED))

    def _minimise(
        self, weights: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, strength: float, metric: "_Metric"
    ) -> torch.Tensor:
        """L-BFGS with backtracking, from `weights` until a step would gain too little."""
        equal = self.classes * math.log(2) if self.multi_label else math.log(self.classes)
        at = self._loss(weights, x, targets, strength)
        steps: list[_Step] = []
        for _ in range(_MOST_STEPS):
            if _product(at.gradient, metric.solve(at.gradient, at.undecided, strength)) <= 2 * _TOLERANCE * equal:
                break
            direction = _direction(at, steps, metric, strength)
            descent, size = _product(at.gradient, direction).item(), 1.0
            while True:
                candidate = weights - size * direction
                new = self._loss(candidate, x, targets, strength)
                if new.loss <= at.loss - _ARMIJO * size * descent or size < _LEAST_STEP:
                    break
                size /= 2
            step = _Step(candidate - weights, new.gradient - at.gradient)
            if _product(step.weights, step.gradient) > 0:
                steps = [*steps[1 - _STEPS_KEPT :], step]
            weights, at = candidate, new
        return weights


@dataclass(frozen=True)
class _Value:
    """The objective at some weights.

    Attributes:
        loss: its value.
        gradient: `[C, D + 1]`.
        undecided: mean of p · (1 - p) of each class's probability p, `[C]`.
    """

    loss: float
    gradient: torch.Tensor
    undecided: torch.Tensor


@dataclass(frozen=True)
class _Metric:
    """The features' covariance: its leading directions, and one variance for all the others.

    Attributes:
        directions: `[D, R]`, orthonormal.
        variances: `[R]`, falling; the last one is used for all other directions.
    """

    directions: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor) -> "_Metric":
        """Of standardised features `[n, D]`: a step of subspace iteration from some of the clips, with Rayleigh and Ritz."""
        start = x[:: max(1, len(x) // _DIRECTIONS)][:_DIRECTIONS]
        basis = torch.linalg.qr(start.T).Q
        basis = torch.linalg.qr(x.T @ (x @ basis)).Q
        seen = x @ basis
        variances, turn = torch.linalg.eigh(seen.T @ seen / len(x))
        return cls(basis @ turn.flip(1), variances.flip(0).clamp(min=0))

    def solve(self, gradient: torch.Tensor, undecided: torch.Tensor, strength: float) -> torch.Tensor:
        """The inverse of the estimated Hessian, times a gradient `[C, D + 1]`."""
        undecided = undecided[:, None]
        inverse = 1 / (undecided * self.variances + strength)  # [C, R]
        other = inverse[:, -1:]
        within = gradient[:, :-1] @ self.directions
        solved = other * gradient[:, :-1] + (within * (inverse - other)) @ self.directions.T
        return torch.cat([solved, gradient[:, -1:] / undecided], dim=1)


@dataclass(frozen=True)
class _Step:
    """How weights and gradient changed in a step, `[C, D + 1]` each."""

    weights: torch.Tensor
    gradient: torch.Tensor


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.dot(a.flatten(), b.flatten())


def _direction(at: _Value, steps: list[_Step], metric: _Metric, strength: float) -> torch.Tensor:
    """The two-loop recursion (Nocedal and Wright, Numerical Optimization, algorithm 7.4) around the metric."""
    direction, removed = at.gradient.clone(), []
    for step in reversed(steps):
        removed.append(_product(step.weights, direction) / _product(step.weights, step.gradient))
        direction -= removed[-1] * step.gradient
    direction = metric.solve(direction, at.undecided, strength)
    if steps:  # scale the metric to the curvature of the last step
        last = steps[-1]
        expected = _product(last.gradient, metric.solve(last.gradient, at.undecided, strength))
        direction *= _product(last.weights, last.gradient) / expected
    for step, share in zip(steps, reversed(removed), strict=True):
        direction += (share - _product(step.gradient, direction) / _product(step.weights, step.gradient)) * step.weights
    return direction
