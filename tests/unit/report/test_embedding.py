"""Maps, clusters and neighbours agree with plain computations."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m2d.report import embedding


def blobs(sizes=(30, 20, 10), width=12):
    rng = np.random.default_rng(0)
    centres = 10 * rng.standard_normal((len(sizes), width))
    return np.concatenate([c + rng.standard_normal((n, width)) for c, n in zip(centres, sizes, strict=True)]).astype(np.float32)


def test_the_map_is_the_first_two_principal_components():
    features = blobs()
    (layout,) = embedding.layouts(embedding.principal(features))
    centred = features - features.mean(axis=0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ vt[:2].T
    signs = np.sign((expected * layout.places).sum(axis=0))
    np.testing.assert_allclose(layout.places * signs, expected, atol=1e-3)
    assert f"{(s[:2] ** 2).sum() / (s**2).sum():.0%} of the variance" in layout.note


def test_clusters_are_found_and_the_largest_is_first():
    found = embedding.clusters(embedding.principal(blobs()))
    assert np.bincount(found).tolist() == [30, 20, 10]
    assert len(set(found[:30])) == len(set(found[30:50])) == len(set(found[50:])) == 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_as_many_clusters_as_asked_for(count):
    assert len(np.unique(embedding.clusters(embedding.principal(blobs()), count))) == count


@settings(max_examples=25)
@given(arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-3, 3, width=16)))
def test_any_rows_have_places_clusters_and_neighbours(features):
    components = embedding.principal(features)
    (layout,) = embedding.layouts(components)
    assert layout.places.shape == (len(features), 2) and np.isfinite(layout.places).all()
    assert embedding.clusters(components).shape == (len(features),)
    near, cosines = embedding.neighbours(features, 3)
    assert near.shape == (len(features), min(3, len(features) - 1)) and np.isfinite(cosines).all()
    assert not (near == np.arange(len(features))[:, None]).any()


def test_neighbours_are_those_of_the_largest_centred_cosine(monkeypatch):
    monkeypatch.setattr(embedding, "_ROWS_AT_ONCE", 7)
    features = blobs()
    near, cosines = embedding.neighbours(features, 4)
    centred = features - features.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(len(features))
    np.testing.assert_array_equal(near, np.argsort(-cosine, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(cosines, np.sort(cosine, axis=1)[:, ::-1][:, :4], atol=1e-5)
    some, _ = embedding.neighbours(features, 4, np.array([5, 50]))
    np.testing.assert_array_equal(some, near[[5, 50]])


def test_rare_labels_are_joined():
    labels = np.array([f"l{i}" for i in range(12) for _ in range(12 - i)])
    group, names = embedding.grouped(labels)
    assert names == ["l0", "l1", "l2", "l3", "l4", "l5", "l6", "other"]
    assert np.bincount(group)[7] == 5 + 4 + 3 + 2 + 1
    assert embedding.grouped(np.array(["b", "a", "b"]))[1] == ["b", "a"]


def test_folders_of_the_first_level_that_differs():
    names = ["lms/dog/1/a.npy", "lms/dog/2/b.npy", "lms/cat/1/c.npy", "lms/cat/d.npy"]
    assert embedding.folders(names).tolist() == ["dog", "dog", "cat", "cat"]
    assert embedding.folders(["a.npy", "b.npy"]) is None
    assert embedding.folders([f"{i}/a.npy" for i in range(9)]) is None


def test_umap_is_a_second_map_where_it_is_installed(monkeypatch):
    module = ModuleType("umap")
    module.UMAP = lambda n_neighbors, random_state: SimpleNamespace(fit_transform=lambda values: 2 * values[:, :2])
    monkeypatch.setitem(sys.modules, "umap", module)
    components = embedding.principal(blobs())
    first, second = embedding.layouts(components)
    assert (first.method, second.method) == ("PCA", "UMAP")
    np.testing.assert_array_equal(second.places, 2 * first.places)
