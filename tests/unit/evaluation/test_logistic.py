"""The logistic regression of probes, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.preprocessing import StandardScaler

from m2d.evaluation.logistic import LogisticRegression


def correlated(clips: int, width: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that share few directions, at very different scales, and classes that they tell with errors."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(clips, 8)) * np.geomspace(3, 0.1, 8)
    features = hidden @ rng.normal(size=(8, width)) + 0.5 * rng.normal(size=(clips, width))
    targets = (hidden @ rng.normal(size=(8, classes)) + rng.gumbel(size=(clips, classes))).argmax(axis=1)
    return (features * np.geomspace(0.01, 100, width) + 5).astype(np.float32), targets


@pytest.mark.parametrize(("clips", "width"), [(400, 30), (60, 90)])
@pytest.mark.parametrize("strength", [0.1, 0.01])
def test_probabilities_are_scikit_learns(clips, width, strength):
    features, targets = correlated(clips, width, 4)
    rows = np.arange(clips) % 5 > 0
    ours = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), 4)
    classifier = ours.fit(torch.from_numpy(np.flatnonzero(rows)), strength)
    found = classifier.scores(torch.from_numpy(features[~rows])).softmax(dim=1).numpy()

    scaler = StandardScaler().fit(features[rows].astype(np.float64))
    reference = Reference(C=1 / (strength * rows.sum()), tol=1e-8, max_iter=5000)
    reference.fit(scaler.transform(features[rows]), targets[rows])
    np.testing.assert_allclose(found, reference.predict_proba(scaler.transform(features[~rows])), atol=0.01)


@pytest.mark.parametrize(("clips", "width"), [(400, 30), (60, 90)])
def test_weak_regularisation_reaches_nearly_the_least_loss(clips, width):
    """Where classes can be separated, weights grow for long and change nothing: the loss is what counts."""
    features, targets = correlated(clips, width, 4)
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    strength = 1e-4
    reference = Reference(C=1 / (strength * clips), tol=1e-8, max_iter=5000).fit(scaled, targets)

    def loss(scores, weights):
        log_p = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        return -log_p[np.arange(clips), targets].mean() + strength / 2 * np.square(weights).sum()

    ours = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), 4).fit(torch.arange(clips), strength)
    weights = ours.weight.numpy().astype(np.float64) * features.std(axis=0, dtype=np.float64)[:, None]
    least = loss(reference.decision_function(scaled), reference.coef_)
    assert loss(ours.scores(torch.from_numpy(features)).numpy().astype(np.float64), weights) < least + 0.01


def test_each_label_has_its_own_binary_classifier():
    features, targets = correlated(300, 20, 3)
    labels = np.stack([targets == 0, (targets == 1) | (features[:, 0] > 5)], axis=1)
    ours = LogisticRegression(torch.from_numpy(features), torch.from_numpy(labels), 2)
    found = ours.fit(torch.arange(300), 0.01).scores(torch.from_numpy(features)).sigmoid().numpy()
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    for i, label in enumerate(labels.T):
        reference = Reference(C=1 / (0.01 * 300), tol=1e-8, max_iter=5000).fit(scaled, label)
        np.testing.assert_allclose(found[:, i], reference.predict_proba(scaled)[:, 1], atol=0.01)


def test_the_path_ends_where_each_strength_alone_does():
    features, targets = correlated(200, 12, 3)
    ours = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), 3)
    rows, x = torch.arange(150), torch.from_numpy(features)
    for strength, classifier in zip((1.0, 0.1, 0.01), ours.path(rows, (1.0, 0.1, 0.01)), strict=True):
        alone = next(ours.path(rows, [strength]))
        torch.testing.assert_close(classifier.scores(x).softmax(1), alone.scores(x).softmax(1), atol=0.01, rtol=0)


def test_features_that_never_change_and_copies_of_others_do_no_harm():
    features, targets = correlated(100, 6, 2)
    features = np.concatenate([features, features[:, :3], np.full((100, 2), 7, np.float32)], axis=1)
    ours = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), 2)
    assert ours.fit(torch.arange(80), 1e-3).scores(torch.from_numpy(features)).isfinite().all()


def test_blocks_change_nothing(monkeypatch):
    features, targets = correlated(120, 10, 3)
    whole = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), 3).fit(torch.arange(100), 0.01)
    monkeypatch.setattr("m2d.evaluation.logistic._BLOCK_VALUES", 70)
    parts = LogisticRegression(torch.from_numpy(features), torch.from_numpy(targets), 3).fit(torch.arange(100), 0.01)
    x = torch.from_numpy(features)
    torch.testing.assert_close(parts.scores(x).softmax(1), whole.scores(x).softmax(1), atol=1e-3, rtol=0)
