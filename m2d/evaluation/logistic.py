"""L2-regularised logistic regression for many clips of wide features: multinomial, or one binary classifier per label.

It minimises the mean cross-entropy plus `strength / 2 · ‖W‖²` (the intercept is not penalised) over standardised features, by
L-BFGS in a metric that is renewed every few steps: the features' covariance, each clip weighted by how undecided the classifier
is about it, plus the penalty. That is close to the Hessian, costs one Cholesky factor for all classes, and makes the number of
passes over the data independent of the features' scales and correlations, which for embeddings are strong.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

#: Strengths to choose from, strong to weak: each fit starts from the one before.
STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)

_BLOCK_VALUES = 1 << 26  # values of a block of features or scores
_STEPS_KEPT = 10  # by L-BFGS, and how often its metric is renewed
_MOST_STEPS = 50
_TOLERANCE = 1e-3  # length of the gradient in the metric, relative to the one at zero weights
_ARMIJO = 1e-4  # share of the linear decrease that a step must reach
_LEAST_STEP = 1e-3
_CURVATURE_CLIPS = 4096


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

    def seconds_per_pass(self) -> float:
        """How long one evaluation of the loss and its gradient on all clips takes, by trying it on some."""
        some = self.features[: max(256, len(self.features) // 16)]
        weights = torch.zeros(some.shape[1] + 1, self.classes, device=some.device)
        begin = time.perf_counter()
        self._loss(weights, some, self.targets[: len(some)], 1.0)
        return (time.perf_counter() - begin) * len(self.features) / len(some)

    def path(self, rows: torch.Tensor, strengths: Sequence[float] = STRENGTHS) -> Iterator[Classifier]:
        """One classifier per strength, fitted on the clips `rows` (int64 `[n]`)."""
        rows = rows.to(self.features.device)
        x, targets = self.features[rows], self.targets[rows]
        mean, scale = _standardisation(x)
        x.sub_(mean).div_(scale)
        basis = None
        if len(x) < x.shape[1]:  # the weights are combinations of the clips: solve in the space that those span
            basis = torch.linalg.qr(x.T).Q
            x = x @ basis
        weights = torch.zeros(x.shape[1] + 1, self.classes, device=x.device)
        for strength in strengths:
            weights = self._minimise(weights, x, targets, strength)
            weight = weights[:-1] if basis is None else basis @ weights[:-1]
            weight = weight / scale[:, None]
            yield Classifier(weight, weights[-1] - mean @ weight)

    def fit(self, rows: torch.Tensor, strength: float) -> Classifier:
        """A classifier of one strength; reached along the path from the strongest, which costs little and saves steps."""
        stronger = [s for s in STRENGTHS if s > strength]
        return list(self.path(rows, [*stronger, strength]))[-1]

    def _loss(self, weights: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, strength: float) -> tuple[float, torch.Tensor]:
        """The objective and its gradient `[D + 1, C]`."""
        total, gradient = torch.zeros((), device=x.device, dtype=torch.float64), torch.empty_like(weights)
        gradient[:-1] = strength * weights[:-1]
        gradient[-1] = 0
        start = 0
        for block in _blocks(x, x.shape[1], self.classes):
            wanted = targets[start : start + len(block)]
            scores = torch.addmm(weights[-1], block, weights[:-1])
            if self.multi_label:
                wanted = wanted.to(scores.dtype)
                total += F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum").double()
                errors = scores.sigmoid_().sub_(wanted)
            else:
                total += F.cross_entropy(scores, wanted, reduction="sum").double()
                errors = scores.softmax(dim=1)
                errors[torch.arange(len(block), device=x.device), wanted] -= 1
            errors /= len(x)
            gradient[:-1].addmm_(block.T, errors)
            gradient[-1] += errors.sum(dim=0)
            start += len(block)
        penalty = strength / 2 * weights[:-1].square().sum(dtype=torch.float64)
        return (total / len(x) + penalty).item(), gradient

    def _curvature(self, weights: torch.Tensor, x: torch.Tensor, strength: float) -> torch.Tensor:
        """Cholesky factor `[D + 1, D + 1]` of the metric: an estimate, from some of the clips, of every class's Hessian."""
        some = x[:: max(1, len(x) // max(_CURVATURE_CLIPS, 2 * x.shape[1]))]
        scores = torch.addmm(weights[-1], some, weights[:-1])
        p = scores.sigmoid() if self.multi_label else scores.softmax(dim=1)
        undecided = (p * (1 - p)).amax(dim=1) if self.multi_label else 1 - p.square().sum(dim=1)
        some = torch.cat([some, some.new_ones(len(some), 1)], dim=1) * (undecided + 1e-6).sqrt()[:, None]
        hessian = (some.T @ some).div_(len(some))
        hessian.diagonal()[:-1] += strength
        hessian.diagonal().mul_(1 + 1e-6)
        return torch.linalg.cholesky(hessian)

    def _minimise(self, weights: torch.Tensor, x: torch.Tensor, targets: torch.Tensor, strength: float) -> torch.Tensor:
        """L-BFGS with backtracking, from `weights` until the gradient in the metric is short enough."""
        loss, gradient = self._loss(weights, x, targets, strength)
        factor = self._curvature(weights, x, strength)
        at_zero = self._loss(torch.zeros_like(weights), x, targets, strength)[1]
        enough = _TOLERANCE**2 * _product(at_zero, torch.cholesky_solve(at_zero, factor))
        steps: list[_Step] = []
        for number in range(1, _MOST_STEPS + 1):
            if _product(gradient, torch.cholesky_solve(gradient, factor)) <= enough:
                break
            if number % _STEPS_KEPT == 0:
                factor, steps = self._curvature(weights, x, strength), []
            direction = _direction(gradient, steps, factor)
            descent, size = _product(gradient, direction).item(), 1.0
            while True:
                candidate = weights - size * direction
                new_loss, new_gradient = self._loss(candidate, x, targets, strength)
                if new_loss <= loss - _ARMIJO * size * descent or size < _LEAST_STEP:
                    break
                size /= 2
            step = _Step(candidate - weights, new_gradient - gradient)
            if _product(step.weights, step.gradient) > 0:
                steps = [*steps[1 - _STEPS_KEPT :], step]
            weights, loss, gradient = candidate, new_loss, new_gradient
        return weights


@dataclass(frozen=True)
class _Step:
    """How weights and gradient changed in a step, `[D + 1, C]` each."""

    weights: torch.Tensor
    gradient: torch.Tensor


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.dot(a.flatten(), b.flatten())


def _direction(gradient: torch.Tensor, steps: list[_Step], factor: torch.Tensor) -> torch.Tensor:
    """The two-loop recursion (Nocedal and Wright, Numerical Optimization, algorithm 7.4) around the metric of `factor`."""
    direction, removed = gradient.clone(), []
    for step in reversed(steps):
        removed.append(_product(step.weights, direction) / _product(step.weights, step.gradient))
        direction -= removed[-1] * step.gradient
    direction = torch.cholesky_solve(direction, factor)
    if steps:  # the last step tells how far the metric is from the Hessian by now
        last = steps[-1].gradient
        direction *= _product(steps[-1].weights, last) / _product(last, torch.cholesky_solve(last, factor))
    for step, share in zip(steps, reversed(removed), strict=True):
        direction += (share - _product(step.gradient, direction) / _product(step.weights, step.gradient)) * step.weights
    return direction
