"""benchmarks/free_variants.py: what a copy changes, and the pack of clips and copies."""

import csv
from pathlib import Path

import numpy as np
import pytest

from m2d.audio.logmel import SILENCE
from m2d.data.label_dataset import LIST_COLUMNS, ASDataset
from m2d.data.pack.store import PackStore


@pytest.fixture
def free_variants(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import free_variants

    return free_variants


def a_clip(seed, frames=60):
    return np.random.default_rng(seed).normal(-7, 2, (80, frames)).astype(np.float32)


def test_a_copy_is_a_function_of_its_generator(free_variants):
    for seed in range(12):
        one, label = free_variants.variant(np.random.default_rng(seed), a_clip(0), a_clip(1, 90), seed % 2 == 0)
        two, same = free_variants.variant(np.random.default_rng(seed), a_clip(0), a_clip(1, 90), seed % 2 == 0)
        np.testing.assert_array_equal(one, two)
        assert label == same and one.dtype == np.float32 and one.shape[0] == 80 and 30 < one.shape[1] <= 80
        assert np.isfinite(one).all() and one.min() >= SILENCE


def test_a_short_cut_is_filled_to_whole_patches_by_the_mean(free_variants):
    clip = a_clip(0, 200)
    short = free_variants.cut_short(np.random.default_rng(3), clip)
    frames = int((short != np.float32(free_variants.MEAN)).all(axis=0).sum())
    assert 30 <= frames <= 90 and short.shape == (80, -(-frames // free_variants.PATCH) * free_variants.PATCH)
    assert any(np.array_equal(short[:, :frames], clip[:, begin : begin + frames]) for begin in range(200 - frames + 1))


def test_channels_differ_and_some_cut_the_high_bands(free_variants):
    gains = np.stack([channel.gain for channel in free_variants.ALL_CHANNELS])
    assert len(np.unique(gains.round(3), axis=0)) == free_variants.CHANNELS
    assert (gains[2::6, -5:] < -8).all() and (gains[0::6] > -6).all()


def test_resampling_stretches_and_shifts(free_variants):
    bands = np.repeat(np.arange(80, dtype=np.float32)[:, None], 40, axis=1)
    longer = free_variants.resampled(bands, 1.25, 2.0)
    assert longer.shape == (80, 50)
    np.testing.assert_allclose(longer[10:70, 0], np.arange(8, 68), atol=1e-4)
    rising = np.repeat(np.arange(40, dtype=np.float32)[None], 80, axis=0)
    np.testing.assert_allclose(free_variants.resampled(rising, 0.5, 0.0)[0, [0, -1]], [0, 39])


def test_a_clip_that_is_mixed_in_lies_below(free_variants):
    quiet = np.full((80, 50), -9, np.float32)
    mixed = free_variants.mixed(quiet, np.full((80, 30), 3, np.float32), 2.0, np.random.default_rng(0))
    np.testing.assert_allclose(mixed[:, :30], -9 + np.log1p(np.exp(-2.0)), atol=1e-4)
    np.testing.assert_allclose(mixed[:, 30:], -9, atol=1e-2)


def test_the_pack_has_each_clip_and_its_copies(free_variants, tmp_path, monkeypatch):
    rows = [{"file_name": f"lms/{part}/{n}.npy", "label": "a,b", "weight": "2"} for part in ("stk", "speech") for n in range(3)]
    for n, row in enumerate(rows):
        path = tmp_path / row["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, a_clip(n, 300 if n == 0 else 40)[None])
    with (tmp_path / "labelled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, free_variants.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    arguments = ["free_variants.py", str(tmp_path / "labelled.csv"), str(tmp_path / "v.pack"), "--data_path", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*arguments, "--workers", "1"])
    free_variants.main()
    store = PackStore(tmp_path / "v.pack", 80, False, LIST_COLUMNS, ("weight",))
    data = ASDataset(store, 96, 0)
    assert len(store) == 24 and store.name(0) == "0/lms/stk/0.npy" and store.name(7) == "1/lms/stk/1.npy"
    np.testing.assert_allclose(store.read_crops(np.array([1]), np.zeros(1), 40)[0], a_clip(1, 40), atol=0.01)
    assert store.frames.lengths[0] == free_variants.FRAMES
    assert set(data.classes) >= {"a", "b"} and any(name.startswith("channel_") for name in data.classes)
    assert (data.weights == 2).all()
