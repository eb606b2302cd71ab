"""Read what others made: regular files only, of bounded size, with values of the types that are expected."""

import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec
import numpy as np
from numpy.lib.npyio import NpzFile

from .errors import FileError

Kind = TypeVar("Kind")

#: What zipfile raises over damaged archives: a changed method of compression leads to any of its decompressors.
ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
    EOFError,
    RuntimeError,
    OverflowError,
    OSError,
    ValueError,
)
MOST_JSON_BYTES = 1 << 24


def open_regular(path: str | os.PathLike) -> int:
    """A file descriptor to read a regular file from, of which opening never waits.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a pipe, a device or a folder.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError("not a regular file but a folder, a pipe, a socket or a device")
    return fd


@contextmanager
def open_npz(path: str | os.PathLike) -> Iterator[NpzFile]:
    """The arrays of an .npz file, read when they are asked for; pickles are refused.

    Raises:
        FileNotFoundError: there is no such file.
        Any of ZIP_ERRORS: it is damaged, or no .npz.
    """
    try:
        stored = np.load(path, allow_pickle=False)
    except ValueError:  # numpy takes what it does not know for a pickle, and says how to load it unsafely
        raise ValueError("not an .npz file") from None
    if isinstance(stored, np.ndarray):
        raise ValueError("one array, not an .npz")
    with stored:
        yield stored


def read_json(path: str | os.PathLike, kind: type[Kind], made_by: str) -> Kind:
    """The value of a JSON file, of a type that msgspec knows: its fields, their types and their ranges are checked.

    Args:
        path: the file.
        kind: what it holds.
        made_by: what writes such files, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it cannot be read, or holds something else.
    """
    try:
        with open(open_regular(path), "rb") as file:
            content = file.read(MOST_JSON_BYTES + 1)
        if len(content) > MOST_JSON_BYTES:
            raise ValueError(f"larger than {MOST_JSON_BYTES >> 20} MiB")
        return msgspec.json.decode(content, type=kind)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise FileError(f"{path}: not what {made_by} writes ({error})") from error
