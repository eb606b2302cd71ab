"""M2D-AS: labels become multi-hot targets, weights become sampling weights, and unusable ones are named."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2d.data.clip_list import TextColumn
from m2d.data.label_dataset import LIST_COLUMNS, ASDataset, LabelTable
from m2d.data.open import open_store
from m2d.data.sampler import SampleKey


@pytest.fixture
def make_clips(tmp_path):
    """A store of clips with the given CSV rows (label, and weight where there is one)."""

    def make(rows, header="file_name,label"):
        lines = [header]
        for i, row in enumerate(rows):
            name = f"{(i * 3) % len(rows)}-{i}.npy"  # not in the order of the names
            np.save(tmp_path / name, np.full((1, 80, 6), i, np.float32))
            lines.append(f"{name},{row}")
        csv = tmp_path / "as.csv"
        csv.write_text("\n".join(lines) + "\n")
        return open_store(csv, tmp_path, sort=False, columns=LIST_COLUMNS, optional=("weight",))

    return make


def targets(data):
    return data.__getitems__([SampleKey(0, i, i) for i in range(len(data))]).target


def test_targets_are_multi_hot_over_the_classes_sorted_as_text(make_clips):
    data = ASDataset(make_clips(['"/m/b,/m/a"', "/m/B", '"/m/10,/m/9,/m/a"']), input_frames=4, seed=0)
    assert data.classes == ["/m/10", "/m/9", "/m/B", "/m/a", "/m/b"] and data.target_width == 5
    assert targets(data).dtype == torch.float32
    assert targets(data).tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 0, 0], [1, 1, 0, 1, 0]]
    assert data.weights is None


def test_list_keeps_its_order_and_is_not_repeated(make_clips):
    data = ASDataset(make_clips(["x", "y", "z", "x"]), input_frames=4, seed=0)
    batch = data.__getitems__([SampleKey(0, i, i) for i in range(4)])
    assert len(data) == 4
    assert batch.clean[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert batch.target.argmax(dim=1).tolist() == [0, 1, 2, 0]


def test_spaces_empty_ids_and_repeated_ids(make_clips):
    data = ASDataset(make_clips(['" a , b"', '"b,,b,"']), input_frames=4, seed=0)
    assert data.classes == ["a", "b"] and targets(data).tolist() == [[1, 1], [0, 1]]


def test_weights_are_read(make_clips):
    data = ASDataset(make_clips(["a,0.25", "b,3", "a,1e-2", "b,0"], "file_name,label,weight"), input_frames=4, seed=0)
    assert data.weights.dtype == np.float64 and data.weights.tolist() == [0.25, 3, 0.01, 0]


@pytest.mark.parametrize("weight", ["x", "-1", "nan", "inf", ""])
def test_unusable_weights_name_the_row(make_clips, weight):
    clips = make_clips(["a,1", f"b,{weight}"], "file_name,label,weight")
    with pytest.raises(ValueError, match=rf"as\.csv row 3: 1-1\.npy: weight '{weight}', expected a number of at least 0"):
        ASDataset(clips, input_frames=4, seed=0)


def test_weights_that_are_all_zero_are_refused(make_clips):
    with pytest.raises(ValueError, match=r"as\.csv: all weights are 0"):
        ASDataset(make_clips(["a,0", "b,0"], "file_name,label,weight"), input_frames=4, seed=0)


def test_missing_label_column_is_refused(make_clips):
    with pytest.raises(ValueError, match=r"as\.csv: no column label .*make_as_weighted_list"):
        make_clips(["3", "4"], "file_name,weight")


def test_a_clip_without_a_label_is_named(make_clips):
    with pytest.raises(ValueError, match=r"as\.csv row 3: no label"):
        make_clips(["a", ""])
    with pytest.raises(ValueError, match=r"as\.csv row 3: 0-1\.npy: no class id in its label"):
        ASDataset(make_clips(["a", '" , "', "b"]), input_frames=4, seed=0)


def test_validation_takes_the_classes_of_training(make_clips):
    clips = make_clips(['"c,a"', "a"])
    data = ASDataset(clips, input_frames=4, seed=0, classes=["a", "b", "c"])
    assert data.classes == ["a", "b", "c"] and targets(data).tolist() == [[1, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"as\.csv row 2: 0-0\.npy: label c is not among the 2 classes"):
        ASDataset(clips, input_frames=4, seed=0, classes=["a", "b"])


class Labels:
    """A store of which only the labels are looked at."""

    def __init__(self, labels):
        self.columns = {"label": TextColumn.of(labels)}
        self.size = len(labels)

    def __len__(self):
        return self.size


IDS = st.text(st.characters(exclude_characters=", \t\n\r\x0b\x0c", exclude_categories=["Cs", "Z", "C"]), min_size=1, max_size=4)


@settings(deadline=None)
@given(labels=st.lists(st.lists(IDS, min_size=1, max_size=4), min_size=1, max_size=20))
def test_any_labels_come_back(labels):
    table = LabelTable(Labels([",".join(ids) for ids in labels]))
    assert table.classes == sorted({name for ids in labels for name in ids})
    target = table.multi_hot(np.arange(len(labels)))
    for row, ids in zip(target, labels, strict=True):
        assert {table.classes[k] for k in np.flatnonzero(row)} == set(ids)


def test_two_hundred_thousand_clips_cost_little():
    rng = np.random.default_rng(0)
    labels = [",".join(f"/m/{k:05d}" for k in rng.integers(0, 527, 3)) for _ in range(200_000)]
    table = LabelTable(Labels(labels))
    assert len(table.classes) == 527
    assert table.codes.nbytes + table.offsets.nbytes < 200_000 * 24
    for i in (0, 77_777, 199_999):
        (row,) = table.multi_hot(np.array([i]))
        assert {table.classes[k] for k in np.flatnonzero(row)} == set(labels[i].split(","))
