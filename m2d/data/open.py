"""Opening a list of clips, whatever its kind: a CSV of files, a pack, or several of these."""

from collections.abc import Sequence
from pathlib import Path

from ..utils.addresses import is_address
from .clip_list import read_list
from .feature_store import FeatureStore, NpzStore
from .file_store import NpyStore
from .mixture.spec import split_lists
from .mixture.store import MixedFeatureStore, MixedStore
from .pack.format import is_pack
from .pack.store import PackFeatureStore, PackStore
from .store import ClipStore


def open_store(
    path: str | Path,
    data_path: str | Path,
    n_mels: int = 80,
    sort: bool = True,
    columns: Sequence[str] = ("file_name",),
    optional: Sequence[str] = (),
    check: bool = True,
) -> ClipStore:
    """The clips of a list.

    Args:
        path: a CSV with a column `file_name` of .npy files, or a pack (`m2d pack`) or its address; a text may name several
            (`mixture.spec.split_lists`).
        data_path: folder that the file names of a CSV are relative to.
        n_mels: mel bands expected.
        sort: order the clips by file name; otherwise keep the list's order.
        columns, optional: columns that the list must have, and may have (`clip_list.read_list`).
        check: look whether the files are there (`FileStore.check_present`).

    Raises:
        FileNotFoundError, FileError: the list cannot be used, or files are missing.
    """
    if isinstance(path, str):
        lists = split_lists(path)
        stores = [_open_one(each.path, data_path, n_mels, sort, columns, optional, check) for each in lists]
        return stores[0] if len(stores) == 1 else MixedStore(stores, [each.weight for each in lists])
    return _open_one(path, data_path, n_mels, sort, columns, optional, check)


def _open_one(
    path: str | Path,
    data_path: str | Path,
    n_mels: int,
    sort: bool,
    columns: Sequence[str],
    optional: Sequence[str],
    check: bool,
) -> ClipStore:
    if _names_pack(path):
        return PackStore(path, n_mels, sort, columns, optional)
    clip_list = read_list(path, columns, optional)
    store = NpyStore(clip_list.sort() if sort else clip_list, data_path, n_mels)
    if check:
        store.check_present()
    return store


def open_features(
    path: str | Path, data_path: str | Path, n_mels: int = 80, patch_frames: int = 4, check: bool = True
) -> FeatureStore:
    """The speech clips of a list, sorted by file name.

    Args:
        path: a CSV with a column `file_name` of .npz files, or a pack of them or its address; a text may name several.
        data_path: folder that the file names of a CSV are relative to.
        n_mels: mel bands expected.
        patch_frames: frames that a patch spans.
        check: look whether the files are there (`FileStore.check_present`).

    Raises:
        FileNotFoundError, FileError: the list cannot be used, or files are missing.
    """
    if isinstance(path, str):
        lists = split_lists(path)
        stores = [_open_speech(each.path, data_path, n_mels, patch_frames, check) for each in lists]
        return stores[0] if len(stores) == 1 else MixedFeatureStore(stores, [each.weight for each in lists])
    return _open_speech(path, data_path, n_mels, patch_frames, check)


def _open_speech(path: str | Path, data_path: str | Path, n_mels: int, patch_frames: int, check: bool) -> FeatureStore:
    if _names_pack(path):
        return PackFeatureStore(path, n_mels, patch_frames)
    store = NpzStore(read_list(path).sort(), data_path, n_mels, patch_frames)
    if check:
        store.check_present()
    return store


def _names_pack(path: str | Path) -> bool:
    return is_address(path) or is_pack(path)
