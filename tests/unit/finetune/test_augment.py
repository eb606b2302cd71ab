"""Augmentation of log-mel batches."""

import numpy as np
import pytest
import torch

from m2d.finetune.augment import mixup, random_resize_crop, spec_augment


@pytest.fixture
def lms():
    return torch.randn(16, 1, 80, 101)


@pytest.mark.parametrize(
    "augment", [random_resize_crop, lambda x, rng: spec_augment(x, 30, 48, rng), lambda x, rng: mixup(x, x[:, 0, 0], 0.3, rng)[0]]
)
def test_a_draw_is_a_function_of_the_generator_and_leaves_the_input(lms, augment):
    before = lms.clone()
    one, same, other = (augment(lms, np.random.default_rng(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert one.shape == lms.shape and not torch.equal(one, other) and torch.equal(lms, before)


def test_runs_of_bands_and_frames_are_masked_and_nothing_else(lms):
    masked = spec_augment(lms + 10, 30, 200, np.random.default_rng(0))
    lengths = []
    for clip in masked[:, 0]:
        bands, frames = (clip == 0).all(dim=1), (clip == 0).all(dim=0)
        assert bool(((clip == 0) == (bands[:, None] | frames[None])).all())
        for axis, longest in ((bands, 30), (frames, 50)):  # 200 frames are more than half of the 101
            places = axis.nonzero().flatten()
            assert len(places) <= longest and (len(places) == 0 or int(places[-1] - places[0]) == len(places) - 1)
        lengths.append(int(bands.sum()))
    assert len(set(lengths)) > 5


def test_crops_keep_their_level_and_stretch_what_is_there():
    """A horizontal line stays a line; its height moves, and the average over many crops stays in the middle."""
    lms = torch.zeros(200, 1, 80, 101)
    lms[:, :, 38:42] = 5.0
    crops = random_resize_crop(lms, np.random.default_rng(0))
    rows = crops[:, 0].amax(dim=2).argmax(dim=1).float()
    assert 4.0 < crops.amax() < 7.0 and rows.std() > 5
    assert abs(rows.mean() - 40) < 4


def test_clips_and_targets_are_mixed_by_the_same_shares():
    lms = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 5)
    mixed, targets = mixup(lms, torch.eye(8), 0.3, np.random.default_rng(0))
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets @ torch.arange(8.0))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    assert ((targets > 0.01) & (targets < 0.99)).any()


def test_no_mixing_at_alpha_0(lms):
    mixed, targets = mixup(lms, torch.eye(16), 0.0, np.random.default_rng(0))
    assert mixed is lms and torch.equal(targets, torch.eye(16))
