"""Label-free quality of representations, streamed over batches of rows.

RankMe (Garrido et al., ICML 2023) and the area under the cumulative explained variance (Li et al., ECCV 2022)
are functions of singular values. Those of x `[samples, features]` are the roots of the eigenvalues of its Gram
matrix x'x, which is a sum over rows: memory does not grow with the samples, and no large matrix is decomposed.
The root halves the digits: what lies below about 1e-8 of the largest singular value is rounding noise. Hence
float64 throughout: either figure then agrees with a float64 SVD's to 1e-4, whatever the spectrum.
"""

from collections.abc import Iterator

import numpy as np
import torch

_BLOCK_ROWS = 4096
_FLOAT64_EPS = float(np.finfo(np.float64).eps)


class GramAccumulator:
    """Both figures of features that come in batches: `update(batch)` for each, then `rank_me()` and `auc()`."""

    def __init__(self) -> None:
        self._rows, self._unit_rows = _Gram(), _Gram(centred=True)

    def update(self, x: torch.Tensor | np.ndarray) -> None:
        """Add rows `[samples, features]` of any float type, on any device.

        Raises:
            ValueError: x has not two dimensions, has another width than earlier rows, or holds NaN or infinity.
        """
        for block in _blocks(x):
            self._rows.add(block)
            self._unit_rows.add(_to_unit_norm(block))

    def rank_me(self) -> float:
        """RankMe of all rows so far: 1 to min(samples, features); 0 where all are zero."""
        return _rank_me(self._rows.singular_values())

    def auc(self) -> float:
        """Area under the cumulative explained variance of all rows so far: 0.5 to 1; 1 where no two rows differ."""
        return _auc(self._unit_rows.singular_values())


def rank_me(x: torch.Tensor | np.ndarray) -> float:
    """RankMe of x `[samples, features]`: the exponential of the entropy of the normalised singular values."""
    gram = _Gram()
    for block in _blocks(x):
        gram.add(block)
    return _rank_me(gram.singular_values())


def get_cumulative_explained_variance_auc(x: torch.Tensor | np.ndarray) -> float:
    """Area under the cumulative explained variance of x `[samples, features]`, rows scaled to unit norm, centred."""
    gram = _Gram(centred=True)
    for block in _blocks(x):
        gram.add(_to_unit_norm(block))
    return _auc(gram.singular_values())


class _Gram:
    """Gram matrix of rows, minus their mean where centred."""

    def __init__(self, centred: bool = False):
        self._centred, self._samples, self._features = centred, 0, 0
        self._pending: list[np.ndarray] = []
        self._gram: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        """Add float64 rows `[samples, features]`, its own from then on; small batches wait to make one efficient product."""
        self._features = self._features or rows.shape[1]
        if rows.shape[1] != self._features:
            raise ValueError(f"features of width {rows.shape[1]} after features of width {self._features}")
        self._samples += len(rows)
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= max(_BLOCK_ROWS, self._features):
            self._fold()

    def singular_values(self) -> np.ndarray:
        """Singular values of all rows so far, descending: float64 `[min(samples, features)]`."""
        if self._samples == 0:
            raise ValueError("no features: at least one row is needed")
        if self._samples < self._features:
            rows = np.concatenate(self._pending)
            rows = rows - rows.mean(axis=0) if self._centred else rows
            return _roots_of_eigenvalues(rows @ rows.T)
        self._fold()
        return _roots_of_eigenvalues(np.asarray(self._gram) - np.outer(self._sum, self._sum) / self._samples)

    def _fold(self) -> None:
        if not self._pending:
            return
        rows = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        self._pending = []
        if self._gram is None:
            self._gram, self._sum = np.zeros((self._features, self._features)), np.zeros(self._features)
            # A point near the mean of all rows: centring about it first keeps the digits that differ.
            self._near_mean = rows.mean(axis=0) if self._centred else None
        if self._centred:
            rows -= self._near_mean
            self._sum += rows.sum(axis=0)
        self._gram += rows.T @ rows  # numpy sees the symmetry and computes one half


def _blocks(x: torch.Tensor | np.ndarray) -> Iterator[np.ndarray]:
    if x.ndim != 2:
        raise ValueError(f"features have shape {list(x.shape)}: [samples, features] is needed")
    for begin in range(0, len(x), _BLOCK_ROWS):
        block = x[begin : begin + _BLOCK_ROWS]
        # A copy: it may wait while the caller reuses its buffer.
        if isinstance(block, torch.Tensor):
            block = block.detach().to("cpu", torch.float64, copy=True).numpy()
        else:
            block = np.array(block, dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            total = block.sum()  # a pass over memory less than looking at each value
        if not np.isfinite(total) and not np.isfinite(block).all():
            raise ValueError(f"features hold NaN or infinity, first in row {begin + np.argmin(np.isfinite(block).all(axis=1))}")
        yield block


def _to_unit_norm(rows: np.ndarray) -> np.ndarray:
    return rows / (np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None] + 1e-6)


def _roots_of_eigenvalues(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.linalg.eigvalsh(gram).clip(min=0))[::-1]


def _rank_me(s: np.ndarray) -> float:
    total = s.sum()
    if total == 0:
        return 0.0
    p = s / total + _FLOAT64_EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def _auc(s: np.ndarray) -> float:
    total = s.sum()
    if total <= len(s) * _FLOAT64_EPS:  # rows of unit norm that differ by rounding alone
        return 1.0
    return float((s.cumsum() / total).mean())
