"""m2d report: which clips it probes with, and what it says of the probes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from m2d.evaluation.probe import Judgement
from m2d.report.learned import ACCURACY, LOGMEL, NEXT_STEP, PROBE_CLIPS, TRAINED, UNTRAINED, labelled_clips, readable, verdict


def names(**sizes: int) -> list[str]:
    return [f"{folder}/{n:04d}.npy" for folder, size in sizes.items() for n in range(size)]


def test_small_classes_are_left_out_and_large_ones_thinned_evenly():
    clips = labelled_clips(Path("data"), names(cat=3000, dog=1000, rare=5), most=10**6)
    assert clips.classes == ["cat", "dog"]
    counts = Counter(clips.targets.tolist())
    assert sum(counts.values()) <= PROBE_CLIPS and counts[0] == pytest.approx(3 * counts[1], abs=3)
    assert clips.paths[0] == Path("data/cat/0000.npy")
    assert len(np.unique(clips.groups)) == len(clips)


def test_a_slow_encoder_is_probed_with_fewer_clips_of_the_largest_classes():
    sizes = {f"class{n:02d}": 100 + n for n in range(26)}
    clips = labelled_clips(Path(), names(**sizes), most=60)
    assert clips.classes == [f"class{n:02d}" for n in range(21, 26)]
    assert len(clips) <= 60 and min(Counter(clips.targets.tolist()).values()) >= 4


@pytest.mark.parametrize("sizes", [dict(all=500), dict(cat=3, dog=4)])
def test_fewer_than_two_classes_are_not_probed(sizes):
    assert labelled_clips(Path(), names(**sizes), most=100) is None
    assert verdict({}) == []


def judgement(accuracy: float) -> Judgement:
    resampled = np.array([accuracy, *np.linspace(accuracy - 0.02, accuracy + 0.02, 41)])
    return Judgement(None, None, [], {ACCURACY: (accuracy, accuracy - 0.02, accuracy + 0.02)}, {ACCURACY: resampled})


@pytest.mark.parametrize(("untrained", "logmel", "gained"), [(0.7, 0.6, True), (0.7, 0.9, False), (0.85, 0.6, False)])
def test_says_whether_training_gained_anything(untrained, logmel, gained):
    lines = verdict({TRAINED: judgement(0.8), UNTRAINED: judgement(untrained), LOGMEL: judgement(logmel)})
    assert lines[0] == f"linear probe on held-out clips:  80.0%  {TRAINED}"
    assert f"{100 * (0.8 - logmel):+.1f} points" in lines[4] and LOGMEL in lines[4]
    assert (lines[-1] == NEXT_STEP) is not gained


def test_one_clip_that_cannot_be_read_leaves_the_others_to_probe_with():
    clips = labelled_clips(Path(), [f"{kind}/{i}.npy" for kind in "ab" for i in range(12)], 24)
    read = np.arange(24) != 3
    left = readable(clips, read)
    assert left.paths == [path for path, was_read in zip(clips.paths, read, strict=True) if was_read]
    assert np.bincount(left.targets).tolist() == [11, 12]
    assert readable(clips, np.arange(24) >= 10) is None
