"""RankMe and AUC against numpy's SVD, in every shape of spectrum, whole and streamed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.evaluation.label_free import GramAccumulator, get_cumulative_explained_variance_auc, rank_me


def svd_rank_me(x: np.ndarray) -> float:
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum() + np.finfo(np.float64).eps
    return np.exp(-(p * np.log(p)).sum())


def svd_auc(x: np.ndarray) -> float:
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
    s = np.linalg.svd(unit - unit.mean(axis=0), compute_uv=False)
    return np.mean([s[: i + 1].sum() / s.sum() for i in range(len(s))])


def with_spectrum(s: np.ndarray, samples: int, features: int, seed: int = 0) -> np.ndarray:
    """A matrix `[samples, features]` whose singular values are s."""
    g = np.random.default_rng(seed)
    left, _ = np.linalg.qr(g.standard_normal((samples, len(s))))
    right, _ = np.linalg.qr(g.standard_normal((features, len(s))))
    return (left * s) @ right.T


INDEX = np.arange(256.0)
SPECTRA = {
    "flat": np.ones(256),
    "rank 1": np.ones(1),
    "rank 5": np.ones(5),
    "halving": 0.5**INDEX,
    "decay 0.9": 0.9**INDEX,
    "power -3": (1 + INDEX) ** -3,
    "power -8": (1 + INDEX) ** -8,
    "down to 1e-12": 10 ** (-12 * INDEX / 255),
    "one of 1e8": np.concatenate([[1e8], np.ones(255)]),
    "floor at 1e-8": np.concatenate([np.ones(10), np.full(246, 1e-8)]),
}


@pytest.mark.parametrize("samples", [200, 256, 2500])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_agrees_with_svd_for_every_spectrum(spectrum, samples):
    x = with_spectrum(SPECTRA[spectrum][:samples], samples, 256)
    assert rank_me(x) == pytest.approx(svd_rank_me(x), rel=1e-4)
    assert get_cumulative_explained_variance_auc(x) == pytest.approx(svd_auc(x), rel=1e-4)


def test_rank_me_of_equal_singular_values_is_their_number():
    assert rank_me(np.eye(50, 8)) == pytest.approx(8, rel=1e-6)
    assert rank_me(with_spectrum(np.ones(3), 40, 12)) == pytest.approx(3, rel=1e-4)


def test_auc_by_hand():
    # Unit rows on two axes, k of them each way: centred singular values are equal, so the curve is 1/2, 1.
    x = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]] * 5)
    assert get_cumulative_explained_variance_auc(x) == pytest.approx(0.75, abs=1e-6)


def test_mean_far_from_zero_is_centred_without_loss():
    x = np.random.default_rng(0).standard_normal((3000, 32)) + 1e5
    assert get_cumulative_explained_variance_auc(x) == pytest.approx(svd_auc(x), rel=1e-4)


def test_collapsed_features():
    same = np.full((300, 16), 0.1, dtype=np.float32)
    assert rank_me(same) == pytest.approx(1, rel=1e-4)
    assert get_cumulative_explained_variance_auc(same) == 1
    assert rank_me(np.zeros((300, 16))) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=8), st.integers(0, 99))
def test_stream_equals_whole(sizes, seed):
    x = np.random.default_rng(seed).standard_normal((sum(sizes), 40)) * np.arange(1, 41) + 3
    accumulator = GramAccumulator()
    buffer = np.empty((max(sizes), 40))
    for rows in np.split(x, np.cumsum(sizes)[:-1]):
        buffer[: len(rows)] = rows  # one buffer for all batches, as loaders do
        accumulator.update(buffer[: len(rows)])
    assert accumulator.rank_me() == pytest.approx(rank_me(x), rel=1e-6)
    assert accumulator.auc() == pytest.approx(get_cumulative_explained_variance_auc(x), rel=1e-6)


def test_reading_the_figures_changes_nothing():
    x = np.random.default_rng(0).standard_normal((900, 40))
    accumulator = GramAccumulator()
    for rows in np.split(x, 3):
        accumulator.update(rows)
        accumulator.rank_me(), accumulator.auc()
    assert accumulator.rank_me() == pytest.approx(svd_rank_me(x), rel=1e-6)
    assert accumulator.auc() == pytest.approx(svd_auc(x), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_tensors_of_any_type(dtype):
    x = torch.randn(500, 24, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    expected = x.detach().double().numpy()
    assert rank_me(x) == pytest.approx(svd_rank_me(expected), rel=1e-6)
    assert get_cumulative_explained_variance_auc(x) == pytest.approx(svd_auc(expected), rel=1e-6)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"shape \[2, 3, 4\]"):
        rank_me(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match="at least one row"):
        rank_me(np.zeros((0, 4)))
    x = np.ones((3000, 4))
    x[2345, 1] = np.nan
    with pytest.raises(ValueError, match="row 2345"):
        get_cumulative_explained_variance_auc(x)
    accumulator = GramAccumulator()
    accumulator.update(np.ones((5, 4)))
    with pytest.raises(ValueError, match="width 3 after features of width 4"):
        accumulator.update(np.ones((5, 3)))
