"""Samples of a run: which crops of which clips, and how a batch is mixed with noise and normalised."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from m2d.data.dataset import AudioDataset, prepare
from m2d.data.rng import Purpose, choice, uniform
from m2d.data.sampler import EpochSampler, NoiseOrder, SampleKey
from m2d.data.store import SILENCE, ClipStore

EPS = torch.finfo(torch.float32).eps


class RampStore(ClipStore):
    """Clips in memory whose values tell clip and frame: 1000 * clip + frame, in each of 4 bands."""

    def __init__(self, lengths, n_mels=4, name="ramp"):
        self.lengths, self.n_mels, self.source = lengths, n_mels, name

    def __len__(self):
        return len(self.lengths)

    def name(self, i):
        return f"{i}.npy"

    def keep(self, clips):
        self.lengths = [self.lengths[i] for i in clips]

    def where(self, i):
        return f"{self.source} row {i + 2}: {i}.npy"

    def file_marks(self, indices):
        return ""

    def fingerprint(self, indices):
        return str(self.lengths)

    def read_crops(self, indices, u, frames, repeat=False):
        crops = np.full((len(indices), self.n_mels, frames), SILENCE, np.float32)
        for crop, i, place in zip(crops, indices, u, strict=True):
            length = self.lengths[i]
            start = int(choice(place, length - frames + 1)) if length > frames else 0
            times = start + np.arange(frames)
            inside = times % length if repeat else times[times < length]
            crop[:, : len(inside)] = 1000 * i + inside
        return crops


def keys(epoch, positions, size):
    return [SampleKey(epoch, p, (p * 7 + 3) % size) for p in positions]


def test_batch_holds_what_its_keys_ask_for():
    data = AudioDataset(RampStore([50, 60, 70]), input_frames=20, seed=9)
    batch = data.__getitems__([SampleKey(4, 10, 2), SampleKey(4, 11, 0)])
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.tensors().items()} == {
        "clean": ((2, 1, 4, 20), torch.float32),
        "position": ((2,), torch.int64),
        "index": ((2,), torch.int64),
    }
    assert (batch.epoch, batch.position.tolist(), batch.index.tolist()) == (4, [10, 11], [2, 0])
    starts = choice(uniform(9, 4, np.array([10, 11]), Purpose.CROP), np.array([51, 31]))
    assert batch.clean[:, 0, 0, 0].tolist() == [2000 + starts[0], starts[1]]
    assert data.names(batch.index) == ["ramp row 4: 2.npy", "ramp row 2: 0.npy"]


def test_a_sample_is_cropped_anew_at_another_position_epoch_and_seed():
    def start(seed, epoch, position):
        data = AudioDataset(RampStore([100_000]), input_frames=5, seed=seed)
        return data.__getitems__([SampleKey(epoch, position, 0)]).clean[0, 0, 0, 0].item()

    base = start(0, 0, 0)
    assert start(0, 0, 0) == base
    assert len({base, start(1, 0, 0), start(0, 1, 0), start(0, 0, 1)}) == 4


def test_all_valid_starts_come_equally_often():
    data = AudioDataset(RampStore([12]), input_frames=8, seed=0)
    batch = data.__getitems__([SampleKey(0, p, 0) for p in range(5000)])
    counts = np.bincount(batch.clean[:, 0, 0, 0].long().numpy())
    assert len(counts) == 5 and counts.min() > 900


def test_without_random_crop_everything_starts_at_zero():
    data = AudioDataset(RampStore([50, 60]), 20, seed=1, noise=RampStore([90]), random_crop=False)
    batch = data.__getitems__(keys(3, range(6), 2))
    assert torch.equal(batch.clean[:, 0, 0, 0] % 1000, torch.zeros(6))
    assert torch.equal(batch.noise[:, 0, 0, 0], torch.zeros(6))


@pytest.mark.parametrize(("clips", "min_size", "size"), [(3, 0, 3), (3, 10, 10), (3, 2, 3), (3, 3, 3), (7, 8, 8)])
def test_min_ds_size_repeats_in_order_to_exactly_that_many(clips, min_size, size):
    data = AudioDataset(RampStore([5] * clips), 5, seed=0, min_ds_size=min_size)
    assert len(data) == size
    batch = data.__getitems__([SampleKey(0, i, i) for i in range(size)])
    assert batch.clean[:, 0, 0, 0].tolist() == [1000 * (i % clips) for i in range(size)]
    assert data.names(batch.index) == [f"ramp row {i % clips + 2}: {i % clips}.npy" for i in range(size)]


@pytest.mark.parametrize("min_size", [0, 25])
def test_noise_goes_through_its_repeated_list_before_any_comes_again(min_size):
    count = max(10, min_size)
    data = AudioDataset(RampStore([30] * 4), 8, seed=2, noise=RampStore([9] * 10), min_ds_size=min_size)
    batch = data.__getitems__(keys(5, range(2 * count), 4))
    clips = (batch.noise[:, 0, 0, 0] // 1000).long().numpy()
    expected = np.bincount(np.arange(count) % 10)
    assert np.array_equal(np.bincount(clips[:count]), expected)
    assert np.array_equal(np.bincount(clips[count:]), expected)
    assert np.array_equal(clips, NoiseOrder(2, count)(5, np.arange(2 * count)) % 10)


def test_noise_crops_are_random_on_their_own_and_repeat_short_clips():
    data = AudioDataset(RampStore([1000]), 10, seed=2, noise=RampStore([1000]))
    batch = data.__getitems__([SampleKey(0, p, 0) for p in range(50)])
    starts = np.stack([getattr(batch, name)[:, 0, 0, 0].numpy() for name in ("clean", "noise")])
    assert abs(np.corrcoef(starts)[0, 1]) < 0.5 and len(set(starts[1])) > 40
    short = AudioDataset(RampStore([1000]), 10, seed=2, noise=RampStore([4]))
    noise = short.__getitems__([SampleKey(0, 0, 0)]).noise
    assert noise[0, 0, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]


def collect(data, plan, epoch, workers, first_step=0):
    keys = list(plan.batches(epoch, first_step))
    return list(DataLoader(data, batch_sampler=keys, collate_fn=lambda batch: batch, num_workers=workers))


def test_batches_do_not_depend_on_workers_batch_size_or_interruption():
    data = AudioDataset(RampStore([40, 50, 60, 70, 80]), 16, seed=3, noise=RampStore([20] * 3), min_ds_size=24)
    plan = EpochSampler(len(data), batch_size=6, seed=3)
    alone = collect(data, plan, 2, workers=0)
    assert len(alone) == 4
    for other in (collect(data, plan, 2, workers=1), collect(data, plan, 2, workers=2)):
        for a, b in zip(alone, other, strict=True):
            assert all(torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items())
    for a, b in zip(alone[2:], collect(data, plan, 2, workers=2, first_step=2), strict=True):
        assert all(torch.equal(tensor, b.tensors()[name]) for name, tensor in a.tensors().items())
    larger = collect(data, EpochSampler(len(data), batch_size=12, seed=3), 2, workers=0)
    for name in ("clean", "noise", "index"):
        assert torch.equal(torch.cat([getattr(b, name) for b in alone]), torch.cat([getattr(b, name) for b in larger]))


def test_single_samples_for_looking_at():
    data = AudioDataset(RampStore([40, 50]), 16, seed=3)
    sample = data[1]
    assert sample.clean.shape == (1, 1, 4, 16) and sample.clean.min() >= 1000
    assert torch.equal(sample.clean, data.__getitems__([SampleKey(0, 1, 1)]).clean)
    assert len(list(data)) == 2
    for i in (2, -1):
        with pytest.raises(IndexError):
            data[i]


def test_a_subclass_adds_what_it_reads():
    class Labelled(AudioDataset):
        def read(self, clips, u):
            return super().read(clips, u) | {"target": np.stack([clips, 10 * clips], axis=1).astype(np.float32)}

    data = Labelled(RampStore([40, 50]), 16, seed=3, min_ds_size=5)
    batch = data.__getitems__([SampleKey(0, 0, 4), SampleKey(0, 1, 3)])
    assert batch.target.tolist() == [[0, 0], [1, 10]]
    assert data[3].target.tolist() == [[1, 10]]


def batch_of(clean, noise=None):
    """Clean clips and noise clips, or None, of one frame each."""
    return [x if x is None else torch.tensor(x, dtype=torch.float32).reshape(1, 1, 1, -1) for x in (clean, noise)]


def test_normalisation_without_noise_is_one_tensor():
    clean, mixed = prepare(*batch_of([-7.1, -2.9, -11.3]), (-7.1, 4.2))
    assert clean is mixed
    torch.testing.assert_close(clean.flatten(), torch.tensor([0.0, 1.0, -1.0]))


def test_noise_ratio_zero_mixes_nothing():
    clean, mixed = prepare(*batch_of([1.0], [5.0]), (0.0, 2.0), (0.0, 1.0), 0.0)
    assert clean is mixed and clean.item() == 0.5


def test_mixing_by_hand():
    """log(0.25 * exp(ln 8) + 0.75 * exp(ln 2)) = log(2 + 1.5), with each set's mean taken away and the main std below."""
    clean, mixed = prepare(*batch_of([math.log(2) + 3], [math.log(8) - 1]), (3.0, 2.0), (-1.0, 5.0), 0.25)
    assert clean.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    assert mixed.item() == pytest.approx(math.log(3.5) / 2, rel=1e-6)


def test_noise_ratio_one_is_the_noise_alone():
    clean, mixed = prepare(*batch_of([1.0], [5.0]), (0.0, 2.0), (4.0, 9.0), 1.0)
    assert (clean.item(), mixed.item()) == (0.5, 0.5)
    assert prepare(*batch_of([1.0], [6.0]), (0.0, 2.0), (4.0, 9.0), 1.0)[1].item() == 1.0


def test_mixture_is_floored_at_eps():
    _, mixed = prepare(*batch_of([-40.0], [-50.0]), (0.0, 1.0), (0.0, 1.0), 0.5)
    assert mixed.item() == pytest.approx(math.log(EPS), rel=1e-6)


@settings(deadline=None)
@given(
    x=st.floats(-16, 20),
    n=st.floats(-16, 20),
    mean=st.floats(-12, 0),
    noise_mean=st.floats(-12, 0),
    std=st.floats(0.5, 6),
    ratio=st.floats(0.001, 0.999),
)
def test_mixing_follows_the_formula_over_the_whole_range(x, n, mean, noise_mean, std, ratio):
    _, mixed = prepare(*batch_of([x], [n]), (mean, std), (noise_mean, 1.0), ratio)
    x, n = np.float64(np.float32(x)) - mean, np.float64(np.float32(n)) - noise_mean
    expected = math.log(max(ratio * math.exp(n) + (1 - ratio) * math.exp(x), EPS)) / std
    assert mixed.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_extreme_values_stay_finite():
    values = [-1e4, -100.0, SILENCE, 0.0, 90.0, 1e4]
    pairs = [(x, n) for x in values for n in values]
    for ratio in (0.01, 0.5, 0.99, 1.0):
        clean, mixed = prepare(*batch_of([x for x, _ in pairs], [n for _, n in pairs]), (-7.1, 4.2), (-5.0, 3.0), ratio)
        assert torch.isfinite(clean).all() and torch.isfinite(mixed).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_time_major_crops_are_prepared_in_float32(dtype):
    values = torch.randn(3, 10, 4).to(dtype)
    clean, _ = prepare(values.transpose(1, 2).unsqueeze(1), None, (0.5, 2.0))
    assert clean.dtype == torch.float32 and clean.is_contiguous() and clean.shape == (3, 1, 4, 10)
    torch.testing.assert_close(clean[:, 0], (values.float().transpose(1, 2) - 0.5) / 2)
