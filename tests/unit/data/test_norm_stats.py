"""Mean and standard deviation of a data set: right, deterministic, light, and measured again when anything changes."""

import json
import logging
import os
import tracemalloc

import numpy as np
import pytest

from m2d.data.clip_list import read_list
from m2d.data.file_store import NpyStore
from m2d.data.norm_stats import cached_stats, drawn_clips, measure_stats
from m2d.data.store import SILENCE


@pytest.fixture
def make_store(tmp_path):
    def make(arrays, n_mels=8):
        for i, array in enumerate(arrays):
            np.save(tmp_path / f"{i:04d}.npy", np.asarray(array, np.float32)[None])
        csv = tmp_path / "clips.csv"
        csv.write_text("file_name\n" + "".join(f"{i:04d}.npy\n" for i in range(len(arrays))))
        return NpyStore(read_list(csv), tmp_path, n_mels)

    return make


def noise_clips(count, frames, seed=0, scale=4.2, offset=-7.1):
    return scale * np.random.default_rng(seed).normal(size=(count, 8, frames)) + offset


@pytest.fixture
def count_measurements(monkeypatch):
    """How often statistics were really measured."""
    calls = []

    def counting(*args):
        calls.append(args)
        return measure_stats(*args)

    monkeypatch.setattr("m2d.data.norm_stats.measure_stats", counting)
    return calls


def test_whole_clips_give_numpys_figures(make_store):
    clips = noise_clips(70, 20)
    mean, std = measure_stats(make_store(clips), 20)
    stored = clips.astype(np.float32).astype(np.float64)
    assert mean == pytest.approx(stored.mean(), rel=1e-12)
    assert std == pytest.approx(stored.std(), rel=1e-12)
    assert type(mean) is float and type(std) is float


def test_pieces_of_very_different_level_are_merged_rightly(make_store):
    """A running sum of squares would lose these digits."""
    clips = np.concatenate([noise_clips(40, 10, scale=1e-3, offset=1e3), noise_clips(33, 10, seed=1, scale=1e-3, offset=1e3 + 1)])
    mean, std = measure_stats(make_store(clips), 10)
    stored = clips.astype(np.float32).astype(np.float64)
    assert mean == pytest.approx(stored.mean(), rel=1e-12) and std == pytest.approx(stored.std(), rel=1e-9)


def test_short_clips_count_their_silence_or_repetition(make_store):
    store = make_store([np.zeros((8, 5)), np.ones((8, 10))])
    padded = np.concatenate([np.zeros(5), np.full(5, np.float32(SILENCE)), np.ones(10)])
    assert measure_stats(store, 10) == pytest.approx((padded.mean(), padded.std()), rel=1e-12)
    assert measure_stats(store, 10, repeat=True) == pytest.approx((0.5, 0.5), rel=1e-12)


def test_crops_are_random_within_the_clips_and_the_same_each_time(make_store):
    store = make_store([np.tile(np.arange(1000.0), (8, 1))] * 60)
    mean, std = measure_stats(store, 10)
    assert 400 < mean < 600 and 200 < std < 400
    assert measure_stats(store, 10) == (mean, std)


@pytest.mark.parametrize(("clips", "n_files", "count"), [(10, 5000, 10), (10, 10, 10), (10, 3, 3), (1, 5, 1), (7, 5, 5)])
def test_drawn_clips_are_spread_evenly(make_store, clips, n_files, count):
    drawn = drawn_clips(make_store(noise_clips(clips, 2)), n_files)
    assert len(drawn) == count == len(set(drawn.tolist()))
    assert drawn[0] == 0 and drawn[-1] < clips
    assert len(set(np.diff(drawn))) <= 2


def test_only_the_drawn_clips_are_read(make_store):
    store = make_store([np.full((8, 4), i % 2) for i in range(12)])
    with pytest.raises(ValueError, match="nothing to learn from"):
        measure_stats(store, 4, n_files=6)
    assert measure_stats(store, 4, n_files=12) == (0.5, 0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_clip_with_nan_is_named(make_store, value):
    clips = noise_clips(50, 6)
    clips[41, 3, 2] = value
    with pytest.raises(ValueError, match=r"clips\.csv row 43: 0041\.npy: NaN or infinite"):
        measure_stats(make_store(clips), 6)


def test_memory_does_not_grow_with_the_number_of_crops(make_store):
    store = make_store(noise_clips(400, 100))
    peaks = []
    for n_files in (64, 400):
        tracemalloc.start()
        measure_stats(store, 100, n_files)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6  # the other 336 crops take 10 MB


def test_cache_is_beside_the_list_and_used(make_store, tmp_path, count_measurements):
    store = make_store(noise_clips(5, 20))
    first = cached_stats(store, 10)
    assert cached_stats(store, 10) == first == measure_stats(store, 10)
    assert len(count_measurements) == 1
    (entry,) = json.loads((tmp_path / "clips.csv.stats.json").read_text()).values()
    assert (entry["mean"], entry["std"]) == first and entry["input_frames"] == 10
    assert [p for p in os.listdir(tmp_path) if "tmp" in p] == []


def test_each_setting_has_its_own_entry(make_store, count_measurements):
    store = make_store(noise_clips(5, 20))
    settings = [(10, 5000, False), (12, 5000, False), (10, 3, False), (10, 5000, True)]
    first = [cached_stats(store, *s) for s in settings]
    assert len(count_measurements) == 4
    assert [cached_stats(store, *s) for s in settings] == first
    assert len(count_measurements) == 4


def test_a_changed_file_is_measured_again(make_store, tmp_path, count_measurements):
    store = make_store(noise_clips(5, 20))
    before = cached_stats(store, 10)
    np.save(tmp_path / "0003.npy", np.full((1, 8, 20), 50, np.float32))
    os.utime(tmp_path / "0003.npy", ns=(1, 1))
    assert cached_stats(store, 10) != before
    assert len(count_measurements) == 2


def test_a_changed_list_is_measured_again(make_store, count_measurements):
    cached_stats(make_store(noise_clips(5, 20)), 10)
    cached_stats(make_store(noise_clips(6, 20)), 10)
    assert len(count_measurements) == 2


@pytest.mark.parametrize("content", ["", "{", '{"a": ', "[1, 2]", "null", "\x00\xff"])
def test_a_torn_cache_is_measured_again_and_mended(make_store, tmp_path, count_measurements, content):
    store = make_store(noise_clips(5, 20))
    cache = tmp_path / "clips.csv.stats.json"
    cache.write_text(content, encoding="latin-1")
    first = cached_stats(store, 10)
    assert cached_stats(store, 10) == first
    assert len(count_measurements) == 1


def test_a_file_of_somebody_else_stays(make_store, tmp_path, caplog):
    store, cache = make_store(noise_clips(5, 20)), tmp_path / "clips.csv.stats.json"
    cache.write_text('{"mean": -7.1, "std": 4.2}')
    assert cached_stats(store, 10) == measure_stats(store, 10)
    assert cache.read_text() == '{"mean": -7.1, "std": 4.2}' and "statistics are not saved" in caplog.text


def test_a_damaged_entry_is_measured_again(make_store, tmp_path, count_measurements):
    store = make_store(noise_clips(5, 20))
    first = cached_stats(store, 10)
    cache = tmp_path / "clips.csv.stats.json"
    entries = json.loads(cache.read_text())
    for damaged in ({"mean": "x", "std": 1.0}, {"mean": 1.0}, {"mean": float("nan"), "std": 1.0}, 3):
        cache.write_text(json.dumps(dict.fromkeys(entries, damaged)))
        assert cached_stats(store, 10) == first


def test_cache_stays_small(make_store, tmp_path):
    store = make_store(noise_clips(3, 40))
    for frames in range(1, 25):
        cached_stats(store, frames)
    entries = json.loads((tmp_path / "clips.csv.stats.json").read_text()).values()
    assert [entry["input_frames"] for entry in entries] == list(range(9, 25))


def test_a_folder_that_cannot_be_written_only_warns(make_store, tmp_path, monkeypatch, caplog):
    store = make_store(noise_clips(3, 20))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("m2d.data.norm_stats.write_bytes", refuse)
    with caplog.at_level(logging.WARNING, "m2d"):
        assert cached_stats(store, 10) == measure_stats(store, 10)
    assert "statistics are not kept" in caplog.text and "Permission denied" in caplog.text
    assert not (tmp_path / "clips.csv.stats.json").exists()
