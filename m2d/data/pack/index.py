"""The index of a pack's chunk, read and checked before anything in it is used: packs come from other people too."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ...utils.errors import FileError
from ...utils.read_file import ZIP_ERRORS, open_regular
from ..clip_list import TextColumn
from ..npy import array_from_bytes
from .format import PackInfo, chunk_path

_LONGEST = 1 << 40  # rows of a clip; sums over a chunk stay far below int64's end


def read_index(pack: str | Path, info: PackInfo, chunk: int) -> dict[str, np.ndarray]:
    """The arrays of a chunk's index: `lengths`, `crc`, each column as blob and offsets; with features `feature_lengths`,
    `feature_crc`, `valid`; a number per clip each.

    Raises:
        FileError: it is damaged, or its values do not fit the pack.
    """
    path = chunk_path(pack, chunk, "index.npz")
    try:
        index = _read_arrays(path, _array_names(info))
        _check(index, info, chunk)
    except ZIP_ERRORS as error:
        raise FileError(f"{path}: damaged ({error}): remove {path.name.split('.')[0]}.* and pack the list again") from error
    return index


def text_column(index: dict[str, np.ndarray], name: str) -> TextColumn:
    """A column of a chunk's index."""
    return TextColumn(index[f"{name}.blob"], index[f"{name}.offsets"])


def _array_names(info: PackInfo) -> list[str]:
    features = ["feature_lengths", "feature_crc", "valid"] if info.feature_width else []
    return ["lengths", "crc", *features, *(f"{name}.{part}" for name in info.columns for part in ("blob", "offsets"))]


def _read_arrays(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Arrays of an .npz that is not compressed: no more memory than the file's size. zipfile checks their checksums."""
    arrays = {}
    with open(open_regular(path), "rb") as file, zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        size = os.fstat(file.fileno()).st_size
        for name in names:
            member = members.get(f"{name}.npy")
            if member is None:
                raise ValueError(f"no {name} in it")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed")
            if max(member.file_size, member.compress_size) > size:  # zipfile allocates it first
                raise ValueError(f"{name}: {member.file_size} bytes in a file of {size}")
            arrays[name] = array_from_bytes(archive.read(member))
    return arrays


def _check(index: dict[str, np.ndarray], info: PackInfo, chunk: int) -> None:
    clips = len(index["lengths"]) if index["lengths"].ndim == 1 else -1
    if not 0 <= clips <= len(info.clips_in(chunk)):
        raise ValueError(f"lengths of shape {index['lengths'].shape}, expected at most {len(info.clips_in(chunk))}")
    for name, dtype in (
        ("lengths", "int64"),
        ("feature_lengths", "int64"),
        ("valid", "int64"),
        ("crc", "uint32"),
        ("feature_crc", "uint32"),
    ):
        if name in index and (index[name].dtype != dtype or index[name].shape != (clips,)):
            raise ValueError(f"{name}: {index[name].dtype} of shape {index[name].shape}, expected {dtype} ({clips},)")
    _check_range("lengths", index["lengths"], _LONGEST)
    if info.feature_width:
        _check_range("feature_lengths", index["feature_lengths"], _LONGEST)
        _check_range("valid", index["valid"], index["feature_lengths"])
    for name in info.columns:
        text_column(index, name).check(name, clips)


def _check_range(name: str, values: np.ndarray, most: int | np.ndarray) -> None:
    if (values < 0).any() or (values > most).any():
        raise ValueError(f"{name} out of range")
