"""Several stores of clips as one: their clips one store after the other."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from ...utils.errors import FileError
from ..clip_list import TextColumn
from ..feature_store import FeatureStore
from ..store import ClipStore


class MixedStore(ClipStore):
    """The clips of several stores. A column is there where all stores have it.

    Args:
        stores: the stores.
        weights: how often each clip of a store comes, compared with those of the others.
    """

    def __init__(self, stores: Sequence[ClipStore], weights: Sequence[float]):
        self.source, self.n_mels = stores[0].source, stores[0].n_mels
        self._take(stores, np.array(weights, dtype=np.float64))

    def _take(self, stores: Sequence[ClipStore], weights: np.ndarray) -> None:
        self.stores, self.weights = stores, weights
        self.counts = np.array([len(store) for store in stores], dtype=np.int64)
        self._begins = np.concatenate([[0], np.cumsum(self.counts)])
        shared = [name for name in stores[0].columns if all(name in store.columns for store in stores)]
        self.columns = {name: self._join(name) for name in shared}

    def _join(self, name: str) -> TextColumn:
        """All stores' texts; the stores' own columns become views of them, so that they are held once."""
        column = TextColumn.join([store.columns[name] for store in self.stores])
        for store, begin, end in zip(self.stores, self._begins[:-1], self._begins[1:], strict=True):
            first, last = column.offsets[[begin, end]]
            store.columns[name] = TextColumn(column.blob[first:last], store.columns[name].offsets)
        return column

    def keep(self, clips: np.ndarray) -> None:
        kept = self._split(clips)
        for store, inside, _ in kept:
            store.keep(inside)
        stores = [store for store, _, _ in kept]
        self._take(stores, self.weights[[self.stores.index(store) for store in stores]])

    @property
    def parts(self) -> Sequence[ClipStore]:
        return self.stores

    @property
    def is_weighted(self) -> bool:
        """Whether clips of one store come more often than those of another."""
        return len(set(self.weights)) > 1

    def where(self, i: int) -> str:
        k = self._store_of(np.array([i]))[0]
        return self.stores[k].where(int(i - self._begins[k]))

    def file_marks(self, indices: np.ndarray) -> str:
        return " ".join(store.file_marks(clips) for store, clips, _ in self._split(indices))

    def fingerprint(self, indices: np.ndarray) -> str:
        each = (store.fingerprint(clips) for store, clips, _ in self._split(indices))
        return f"{self.weights.tolist()} {' '.join(each)}"

    def spread(self, count: int) -> np.ndarray:
        share = self.weights * self.counts
        begins = np.concatenate([[0], np.cumsum(share)])
        places = np.arange(count) * begins[-1] / count
        k = np.searchsorted(begins[1:], places, side="right").clip(max=len(self.stores) - 1)
        inside = ((places - begins[k]) / self.weights[k]).astype(np.int64)
        return self._begins[k] + inside.clip(max=self.counts[k] - 1)

    def read_crops(self, indices: np.ndarray, u: np.ndarray, frames: int, repeat: bool = False) -> np.ndarray:
        parts = self._split(indices)
        return _gather(parts, [store.read_crops(clips, u[places], frames, repeat) for store, clips, places in parts])

    def _store_of(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._begins, indices, side="right") - 1

    def _split(self, indices: np.ndarray) -> list[tuple[ClipStore, np.ndarray, np.ndarray]]:
        """The stores that hold these clips, the clips' numbers there, and their places among the indices."""
        of = self._store_of(indices)
        places = {k: np.flatnonzero(of == k) for k in np.unique(of).tolist()}
        return [(self.stores[k], indices[here] - self._begins[k], here) for k, here in places.items()]


def _gather(parts: Sequence[tuple[ClipStore, np.ndarray, np.ndarray]], read: Sequence[np.ndarray]) -> np.ndarray:
    """What was read of each part, in the order of the indices."""
    if len(read) == 1:
        return read[0]
    out = np.empty((sum(map(len, read)), *read[0].shape[1:]), np.result_type(*read))
    for (_, _, places), piece in zip(parts, read, strict=True):
        out[places] = piece
    return out


class MixedFeatureStore(MixedStore, FeatureStore):
    """The speech clips of several stores, with their features.

    Raises:
        FileError: features of different widths.
    """

    def __init__(self, stores: Sequence[FeatureStore], weights: Sequence[float]):
        super().__init__(stores, weights)
        self.patch_frames, self.feature_width = stores[0].patch_frames, stores[0].feature_width
        for store in stores:
            if store.feature_width != self.feature_width:
                raise FileError(
                    f"{store.source}: features of width {store.feature_width}, those of {self.source} have {self.feature_width}"
                )

    def read_with_features(self, indices: np.ndarray, u: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
        parts = self._split(indices)
        read = [cast(FeatureStore, store).read_with_features(clips, u[places], frames) for store, clips, places in parts]
        return _gather(parts, [crops for crops, _ in read]), _gather(parts, [features for _, features in read])
