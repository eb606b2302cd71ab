"""Metrics against scikit-learn's, and intervals against what is known of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, f1_score

from m2d.evaluation.scores import accuracy, interval, macro_f1, mean_average_precision, resampling_weights


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 60))
def test_weighted_metrics_are_scikit_learns_on_repeated_clips(seed, classes, clips):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, size=(clips, classes)).astype(float)  # with ties
    targets = rng.integers(0, classes, clips)
    weights = rng.integers(0, 3, size=(2, clips)).astype(np.float32)
    weights[:, 0] = 1
    labels = rng.random((clips, classes)) < 0.4
    labels[0] = True
    for row, acc, f1, ap in zip(
        weights,
        accuracy(scores, targets, weights),
        macro_f1(scores, targets, weights),
        mean_average_precision(scores, labels, weights),
        strict=True,
    ):
        rows = np.repeat(np.arange(clips), row.astype(int))
        predicted = scores[rows].argmax(axis=1)
        assert acc == pytest.approx((predicted == targets[rows]).mean(), abs=1e-6)
        assert f1 == pytest.approx(f1_score(targets[rows], predicted, average="macro"), abs=1e-6)
        assert ap == pytest.approx(average_precision_score(labels[rows], scores[rows], average="macro"), abs=1e-6)


def test_the_interval_of_independent_clips_is_the_binomial_one():
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.7
    scores = np.stack([~right, right], axis=1).astype(float)
    value, low, high = interval(accuracy(scores, np.ones(400, int), resampling_weights(np.arange(400))))
    error = 1.96 * np.sqrt(value * (1 - value) / 400)
    assert (low, high) == (pytest.approx(value - error, abs=0.01), pytest.approx(value + error, abs=0.01))


def test_clips_of_one_group_count_as_one():
    """Twenty copies of each clip tell no more than one: the interval stays as wide."""
    rng = np.random.default_rng(1)
    right = rng.random(50) < 0.6
    scores = np.stack([~right, right], axis=1).astype(float)
    single = interval(accuracy(scores, np.ones(50, int), resampling_weights(np.arange(50))))
    copies = interval(
        accuracy(np.repeat(scores, 20, axis=0), np.ones(1000, int), resampling_weights(np.repeat(np.arange(50), 20)))
    )
    np.testing.assert_allclose(copies, single, atol=0.02)
