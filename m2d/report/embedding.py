"""What embeddings look like: a map, clusters, nearest neighbours, and how many directions they use."""

import importlib
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

#: Colours of a map: more groups than these are joined to "other".
MOST_GROUPS = 8
_COMPONENTS = 50  # that clusters and UMAP are computed from
_SILHOUETTE_CLIPS = 2000
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Layout:
    """A map: a place for each row, float32 `[n, 2]`, and how it came about."""

    method: str
    places: np.ndarray
    note: str


@dataclass(frozen=True)
class Principal:
    """Principal components of rows: float32 `[n, components]`, and the share of the variance of each."""

    values: np.ndarray
    shares: np.ndarray


def principal(features: np.ndarray) -> Principal:
    """The first principal components of `[n, width]`, at most 50; at least two columns, of zeros where there are fewer."""
    count = min(_COMPONENTS, *features.shape)
    with np.errstate(invalid="ignore", divide="ignore"):  # rows that are all the same have no variance to share
        found = PCA(count, svd_solver="randomized", random_state=0).fit(features)
    values = found.transform(features).astype(np.float32)
    shares = np.nan_to_num(found.explained_variance_ratio_)
    missing = max(0, 2 - count)
    return Principal(np.pad(values, ((0, 0), (0, missing))), np.pad(shares, (0, missing)))


def layouts(components: Principal) -> list[Layout]:
    """Maps of rows by their principal components: the first two, and UMAP's where umap-learn is installed."""
    share = components.shares[:2].sum()
    found = [Layout("PCA", components.values[:, :2], f"the first two principal components: {share:.0%} of the variance")]
    try:
        umap = importlib.import_module("umap")
    except ModuleNotFoundError:
        return found
    if len(components.values) > 15:
        places = umap.UMAP(n_neighbors=15, random_state=0).fit_transform(components.values)
        found.append(
            Layout("UMAP", np.asarray(places, dtype=np.float32), "UMAP of the first principal components, 15 neighbours")
        )
    return found


def clusters(components: Principal, count: int | None = None) -> np.ndarray:
    """The cluster of each row by k-means, int64 `[n]`, the largest first.

    Args:
        components: of the rows.
        count: how many clusters; none: from 2 to 8, those that are most apart (by the silhouette of up to 2,000 rows).
    """
    values = components.values
    distinct = len(np.unique(values, axis=0))
    if distinct < 3:
        return np.unique(values, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    some = values[np.unique(np.linspace(0, len(values) - 1, _SILHOUETTE_CLIPS).astype(int))]
    if count is None:
        most = min(MOST_GROUPS, len(np.unique(some, axis=0)) - 1)
        count = max(range(2, most + 1), key=lambda k: silhouette_score(some, _k_means(some, k).labels_), default=1)
    found = _k_means(some, min(count, distinct)).predict(values)
    order = np.argsort(-np.bincount(found), kind="stable")
    return np.argsort(order)[found].astype(np.int64)


def _k_means(values: np.ndarray, count: int) -> KMeans:
    return KMeans(count, n_init=4, random_state=0).fit(values)


def neighbours(features: np.ndarray, count: int, queries: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other rows by the cosine of what differs from the mean of all rows.

    Args:
        features: float32 `[n, width]`.
        count: neighbours of each row.
        queries: the rows asked for; all where it is not given.

    Returns:
        int64 and float32 `[queries, count]`, nearest first; fewer where there are fewer rows.
    """
    centred = features - features.mean(axis=0)
    centred /= np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    queries = np.arange(len(features)) if queries is None else queries
    count = min(count, len(features) - 1)
    nearest, cosines = [], []
    for begin in range(0, len(queries), _ROWS_AT_ONCE):
        rows = queries[begin : begin + _ROWS_AT_ONCE]
        cosine = centred[rows] @ centred.T
        cosine[np.arange(len(rows)), rows] = -np.inf
        found = np.argpartition(-cosine, range(count), axis=1)[:, :count] if count else np.zeros((len(rows), 0), int)
        nearest.append(found)
        cosines.append(np.take_along_axis(cosine, found, axis=1))
    return np.concatenate(nearest).astype(np.int64), np.concatenate(cosines).astype(np.float32)


def grouped(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A group for each label, int64 `[n]`, and the groups' names: the most frequent labels, and "other" for the rest."""
    names, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.lexsort((names, -counts))
    kept = order if len(order) <= MOST_GROUPS else order[: MOST_GROUPS - 1]
    group_of = np.full(len(names), len(kept), dtype=np.int64)
    group_of[kept] = np.arange(len(kept))
    return group_of[codes.reshape(-1)], [str(names[i]) for i in kept] + (["other"] if len(order) > len(kept) else [])


def folders(names: list[str]) -> np.ndarray | None:
    """The folder of each file name, of the first level at which they differ; none where all are in one, or each in its own."""
    parts = [name.replace("\\", "/").split("/")[:-1] for name in names]
    depth = 0
    while all(len(part) > depth for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    found = np.array([part[depth] if len(part) > depth else "." for part in parts])
    kinds = len(np.unique(found))
    return found if 1 < kinds <= max(2, len(names) // 2) else None
