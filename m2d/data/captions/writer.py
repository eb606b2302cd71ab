"""Write embeddings of captions; read the published pickles."""

import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.atomic_file import open_atomic, write_npz
from ...utils.errors import FileError
from .store import joined

_SAFETENSORS_TYPES = {"float16": "F16", "int64": "I64", "uint8": "U8"}
_COPY_ROWS = 1 << 12
#: All that pickled arrays need; NumPy 2 has them elsewhere than NumPy 1.
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype")}
_ALLOWED |= {(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")}
_ALLOWED |= {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}

logger = logging.getLogger("m2d")


def write_embeddings(path: Path, arrays: Mapping[str, np.ndarray], told: Mapping[str, str]) -> None:
    """Write a file that `open_captions` reads, atomically: .npz, or .safetensors, of which no more than a block is in memory.

    Args:
        path: the file.
        arrays: those of `store.ARRAYS`.
        told: metadata of the .safetensors file.
    """
    if path.suffix == ".npz":
        write_npz(path, **arrays)
        return
    header: dict[str, Any] = {"__metadata__": dict(told)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _SAFETENSORS_TYPES[array.dtype.name], "shape": array.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            for row in range(0, len(array), _COPY_ROWS):
                file.write(np.ascontiguousarray(array[row : row + _COPY_ROWS]).data)


# ---------------------------------------------------------------- the published pickles


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dicts, texts, numbers and NumPy arrays, and nothing that could run code."""

    def find_class(self, module_name: str, global_name: str) -> Callable:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it uses {module_name}.{global_name}, which no dict of arrays needs: refused")
        return super().find_class(module_name, global_name)


def read_pickled(path: Path) -> dict[str, np.ndarray]:
    """The arrays of `store.ARRAYS` from a published file: a .npy that holds a pickled dict {id: embedding `[E]` or `[n, E]`}.

    No code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it holds anything else.
    """
    with _damage_explained(path), open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if shape != () or not dtype.hasobject:
            raise ValueError(f"it holds an array of {dtype} {shape}, not a pickled dict")
        held = _ArraysOnly(file).load()
        content = held.item() if isinstance(held, np.ndarray) and held.shape == () else held
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dict")
        for key, value in content.items():
            if not isinstance(key, str) or not isinstance(value, np.ndarray):
                raise ValueError(f"{str(key)[:40]!r} is a {type(value).__name__}, not an array")
        return joined(path, content)


@contextmanager
def _damage_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (FileError, FileNotFoundError):
        raise
    except Exception as error:  # changed bytes lead pickle and NumPy to errors of nearly every class
        raise FileError(f"{path}: no dict of arrays that can be read without running code: {error}") from error
