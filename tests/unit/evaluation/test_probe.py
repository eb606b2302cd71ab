"""The probe's protocol: groups held out, the regularisation chosen inside, differences paired."""

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from m2d.evaluation.labelled_clips import LabelledClips
from m2d.evaluation.logistic import LogisticRegression
from m2d.evaluation.probe import Protocol, neighbour_scores
from m2d.utils import parallel


def clips_of(targets: np.ndarray, groups: np.ndarray, splits: np.ndarray | None = None) -> LabelledClips:
    classes = [f"class {i}" for i in range(targets.max() + 1 if targets.ndim == 1 else targets.shape[1])]
    return LabelledClips([Path(f"{i}.wav") for i in range(len(targets))], classes, targets, groups, splits)


def test_groups_are_never_on_both_sides_and_every_clip_is_judged_once():
    rng = np.random.default_rng(0)
    clips = clips_of(rng.integers(0, 3, 120), rng.integers(0, 25, 120))
    protocol = Protocol(clips, folds=5)
    assert sorted(protocol.judged) == list(range(120))
    for split in protocol.splits:
        assert not set(clips.groups[split.train]) & set(clips.groups[split.test])


def test_features_that_only_know_the_group_are_worth_nothing():
    """Each group is of one class and has a vector of its own: without held-out groups this would be named perfectly."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 5)
    targets = rng.integers(0, 2, 60)[groups]
    features = rng.normal(size=(60, 16))[groups].astype(np.float32)
    judgement = Protocol(clips_of(targets, groups)).judge(features)
    assert 0.25 < judgement.figures["linear/accuracy"][0] < 0.75
    assert 0.25 < judgement.figures["knn/accuracy"][0] < 0.75


def test_better_features_win_outside_the_interval_of_the_difference():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 400)
    noise = rng.normal(size=(400, 12)).astype(np.float32)
    good, bad = noise.copy(), noise.copy()
    good[np.arange(400), targets] += 3
    bad[np.arange(400), targets] += 1
    protocol = Protocol(clips_of(targets, np.arange(400)))
    good, bad = protocol.judge(good), protocol.judge(bad)
    for name in ("linear/accuracy", "linear/macro_f1", "knn/accuracy", "knn/macro_f1"):
        value, low, high = good.difference(bad, name)
        assert low > 0.1 and value == pytest.approx(good.figures[name][0] - bad.figures[name][0], abs=1e-6)


def test_more_folds_than_clips_of_a_class_are_as_many_as_there_can_be():
    clips = clips_of(np.arange(12) % 2, np.arange(12))
    protocol = Protocol(clips, folds=9)
    assert len(protocol.splits) == 6
    protocol.judge(np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32))


def test_classes_of_few_clips_are_split_without_a_librarys_warning(recwarn):
    clips = clips_of(np.repeat(np.arange(4), [2, 3, 9, 9]), np.arange(23))
    protocol = Protocol(clips, folds=5)
    assert len(protocol.splits) == 5 and sorted(protocol.judged) == list(range(23))
    protocol.judge(np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32))
    assert not recwarn.list


def test_given_splits_are_used_as_they_are():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 90)
    features = (targets[:, None] * 2 + rng.normal(size=(90, 4))).astype(np.float32)
    splits = np.array(["train", "val", "test"])[np.arange(90) % 3]
    protocol = Protocol(clips_of(targets, np.arange(90), splits))
    judgement = protocol.judge(features)
    assert protocol.judged.tolist() == np.flatnonzero(splits == "test").tolist()
    assert len(judgement.linear) == 30 and judgement.figures["linear/accuracy"][0] > 0.8


def test_several_labels_are_judged_by_average_precision():
    rng = np.random.default_rng(0)
    labels = rng.random((200, 3)) < 0.3
    labels[~labels.any(axis=1), 0] = True
    features = (labels @ rng.normal(size=(3, 10)) + 0.3 * rng.normal(size=(200, 10))).astype(np.float32)
    judgement = Protocol(clips_of(labels, np.arange(200))).judge(features)
    assert set(judgement.figures) == {"linear/map", "knn/map"}
    assert min(value for value, _, _ in judgement.figures.values()) > 0.85


def test_neighbours_are_scikit_learns():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(80, 6)).astype(np.float32), rng.integers(0, 3, 80)
    fitted, judged = np.arange(60), np.arange(60, 80)
    scores = neighbour_scores(torch.from_numpy(features), torch.from_numpy(targets), 3, fitted, judged, k=5).numpy()
    centred = features - features[:60].mean(axis=0)
    distance, nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(centred[:60]).kneighbors(centred[60:])
    for row, d, near in zip(scores, distance, nearest, strict=True):
        expected = np.bincount(targets[near], np.exp(-d / 0.07), minlength=3)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-6)


def test_the_same_seed_gives_the_same_figures():
    rng = np.random.default_rng(0)
    clips = clips_of(rng.integers(0, 2, 60), np.arange(60))
    features = rng.normal(size=(60, 5)).astype(np.float32)
    assert Protocol(clips, seed=3).judge(features).figures == Protocol(clips, seed=3).judge(features).figures


def test_the_time_left_is_that_of_the_fits_so_far(monkeypatch, caplog):
    """Few clips of many classes take far more steps than a pass over the clips tells: only the fits themselves tell."""
    now = 0.0
    fit = LogisticRegression.path

    def slow_fit(*args):
        nonlocal now
        now += 60
        return fit(*args)

    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(LogisticRegression, "path", slow_fit)
    rng = np.random.default_rng(0)
    with caplog.at_level(logging.INFO, "m2d"):
        Protocol(clips_of(np.arange(24) % 4, np.arange(24)), folds=2).judge(rng.normal(size=(24, 16)).astype(np.float32), "some")
    announced, *lines = caplog.messages
    assert announced == "some: fitting classifiers of 16 features"
    assert lines[0] == "1 of 8 fits, 1.0 a minute, 7 min left" and lines[-1] == "8 of 8 fits, 1.0 a minute, 0 min left"
