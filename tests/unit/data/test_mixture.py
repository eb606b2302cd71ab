"""Several lists as one: which files a flag names, which clips an epoch takes of each, and that each clip is its own store's."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.data.mixture.spec import split_lists
from m2d.data.mixture.store import MixedStore
from m2d.data.open import open_store
from m2d.data.rng import Purpose, permutation
from m2d.data.sampler import EpochSampler, MixedOrder
from m2d.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("a.csv", [("a.csv", 1)]),
        ("a.csv,b.pack", [("a.csv", 1), ("b.pack", 1)]),
        ("a.csv:2,b.pack:0.5", [("a.csv", 2), ("b.pack", 0.5)]),
        ("with,comma.csv", [("with,comma.csv", 1)]),
        ("a.csv,with,comma.csv:3,b.pack", [("a.csv", 1), ("with,comma.csv", 3), ("b.pack", 1)]),
        ("colon:7", [("colon:7", 1)]),
        ("colon:7:2,a.csv", [("colon:7", 2), ("a.csv", 1)]),
        ("not there.csv,a.csv", [("not there.csv", 1), ("a.csv", 1)]),
        ("not there.csv:3", [("not there.csv", 1)]),
        ("s3://b/a.pack:2,b.pack", [("s3://b/a.pack", 2), ("b.pack", 1)]),
        ("a.csv,s3://b/a:c.pack,s3://b/a", [("a.csv", 1), ("s3://b/a:c.pack", 1), ("s3://b/a", 1)]),
        (
            "https://h:80/a.pack,https://h:80/b:0.5,https://h:80",
            [("https://h:80/a.pack", 1), ("https://h:80/b", 0.5), ("https://h:80", 1)],
        ),
    ],
)
def test_lists_of_a_flag(tmp_path, monkeypatch, text, lists):
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "with,comma.csv", "colon:7"):
        (tmp_path / name).touch()
    (tmp_path / "b.pack").mkdir()
    assert split_lists(text) == lists


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://b/a.pack:0", "above 0"),
        ("a.csv:0", "above 0"),
        ("a.csv:-1", "above 0"),
        ("a.csv:inf", "above 0"),
        ("a.csv:nan", "above 0"),
        ("a.csv:b", "'b'"),
    ]
    + [("a.csv,", "missing"), (",a.csv", "missing"), ("a.csv,,a.csv", "missing")],
)
def test_weights_that_are_none_are_refused(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    with pytest.raises(UserError, match=words):
        split_lists(text)


LISTS = st.lists(st.tuples(st.integers(20, 60), st.floats(0.3, 5)), min_size=2, max_size=3)


@settings(max_examples=20, deadline=None)
@given(lists=LISTS, samples=st.integers(200, 300), seed=st.integers(0, 9))
def test_an_epoch_takes_of_each_list_its_share_and_every_clip_before_any_again(lists, samples, seed):
    counts, weights = np.array([count for count, _ in lists]), np.array([weight for _, weight in lists])
    order = MixedOrder(seed, counts, weights, samples)
    shares = samples * counts * weights / (counts * weights).sum()
    drawn = Counter()
    for epoch in range(3):
        clips = order(epoch)
        assert len(clips) == samples and np.array_equal(clips, order(epoch))
        of = np.searchsorted(np.cumsum(counts), clips, side="right")
        np.testing.assert_allclose(np.bincount(of, minlength=len(counts)), shares, atol=1)
        drawn.update(clips.tolist())
        for k, begin in enumerate(np.cumsum(counts) - counts):
            times = [drawn[clip] for clip in range(begin, begin + counts[k])]
            assert max(times) - min(times) <= 1


def test_weights_of_one_half_and_seeds_give_other_orders():
    orders = [MixedOrder(seed, np.array([50, 50]), np.array([1.0, 0.5]), 75)(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
    assert sorted(set(orders[0][orders[0] < 50].tolist())) == list(range(50))
    halves = [set(order[order >= 50].tolist()) for order in orders[:2]]
    assert halves[0] | halves[1] == set(range(50, 100)) and not halves[0] & halves[1]


def test_a_share_of_less_than_a_clip_is_refused():
    with pytest.raises(UserError, match="list 2 of --csv_main has 1 clips and the weight 0.001"):
        MixedOrder(0, np.array([1000, 1]), np.array([1, 1e-3]), 1000)


def test_a_sampler_splits_the_mixed_order_over_ranks():
    order = MixedOrder(3, np.array([30, 10]), np.array([1.0, 2.0]), 40)
    whole = [key.index for batch in EpochSampler(40, 8, seed=3, mixed=order).batches(1) for key in batch]
    assert whole == order(1).tolist()
    ranks = [list(EpochSampler(40, 4, 1, rank, 2, 3, mixed=order).batches(1)) for rank in (0, 1)]
    assert [key.index for pair in zip(*ranks, strict=True) for batch in pair for key in batch] == whole


@pytest.fixture
def lists(tmp_path):
    """Two lists of clips, whose first values tell list and clip."""
    for k, count in enumerate((5, 3)):
        for i in range(count):
            clip = np.random.default_rng(i).normal(size=(1, 80, 20)).astype(np.float32)
            clip[0, 0] = 10 * k + i
            np.save(tmp_path / f"{'ab'[k]}{i}.npy", clip)
        rows = [f"{'ab'[k]}{i}.npy,{i}" + (",1" if k else "") for i in range(count)]
        (tmp_path / f"{'ab'[k]}.csv").write_text("\n".join(["file_name,label" + (",weight" if k else ""), *rows]) + "\n")
    return tmp_path


def test_a_mixed_store_reads_each_clip_from_its_own(lists):
    store = open_store(f"{lists}/a.csv,{lists}/b.csv", lists, columns=("file_name", "label"), optional=("weight",))
    assert isinstance(store, MixedStore) and len(store) == 8
    assert [store.name(i) for i in range(8)] == ["a0.npy", "a1.npy", "a2.npy", "a3.npy", "a4.npy", "b0.npy", "b1.npy", "b2.npy"]
    assert list(store.columns) == ["file_name", "label"]  # a.csv has no weights
    indices, u = np.array([7, 0, 5, 4, 0]), np.array([0.1, 0.9, 0.5, 0.3, 0.2])
    crops = store.read_crops(indices, u, 10)
    assert crops[:, 0, 0].tolist() == [12, 0, 10, 4, 0]
    single = open_store(lists / "b.csv", lists).read_crops(np.array([2]), u[:1], 10)
    assert np.array_equal(crops[0], single[0])
    assert store.where(6) == f"{lists / 'b.csv'} row 3: b1.npy"
    store.keep(np.array([1, 4, 6]))
    assert [store.name(i) for i in range(3)] == ["a1.npy", "a4.npy", "b1.npy"]
    assert store.read_crops(np.arange(3), np.zeros(3), 10)[:, 0, 0].tolist() == [1, 4, 11]
    store.keep(np.array([2]))
    assert len(store.parts) == 1 and store.name(0) == "b1.npy" and store.weights.tolist() == [1]


def test_clips_are_spread_by_their_weights(lists):
    store = open_store(f"{lists}/a.csv:3,{lists}/b.csv:1", lists)
    assert np.bincount(store.spread(18) >= 5).tolist() == [15, 3]
    assert np.array_equal(open_store(f"{lists}/a.csv,{lists}/b.csv", lists).spread(8), np.arange(8))


def test_a_changed_file_changes_the_fingerprint(lists):
    store = open_store(f"{lists}/a.csv:3,{lists}/b.csv:1", lists)
    before = store.fingerprint(np.arange(8)), store.file_marks(np.arange(8))
    np.save(lists / "b1.npy", np.zeros((1, 80, 21), np.float32))
    after = store.fingerprint(np.arange(8)), store.file_marks(np.arange(8))
    assert before[0] != after[0] and before[1] != after[1]


def test_the_order_of_one_list_is_not_that_of_another():
    orders = [permutation(0, k, Purpose.LIST_ORDER, 100, cycle) for k in (0, 1) for cycle in (0, 1)]
    assert len({order.tobytes() for order in orders}) == 4
