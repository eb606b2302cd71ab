"""Write files atomically: readers see the old file or the whole new one. Every program writes its files through here."""

import csv
import errno
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Seconds without a write after which a temporary file belongs to a process that was killed.
LEFTOVER_SECONDS = 86400
_MARK = ".m2d-tmp"
_TEMPORARY = re.compile(rf"\..*\.[0-9a-f]{{16}}{re.escape(_MARK)}", re.DOTALL)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NAME_CHARACTERS = 40  # of the file's own name in a temporary's: at most 160 of the 255 bytes that a name may have


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """The error of a full disk, which the system raises without a name, gets this file's."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def open_atomic(path: str | os.PathLike, durable: bool = True, replace: bool = True) -> Iterator[BinaryIO]:
    """A file to write to (and seek in) that takes the place of `path` when the block ends without an error.

    It is written in the same folder under a random name, which is created exclusively: writers of the same path, in
    whatever process or container, never share it, and a link placed there by others is not followed.

    Args:
        path: the file; its folder exists.
        durable: flush the file and its folder to the disk. Without, a machine that loses power may leave an empty file.
        replace: False keeps a file that is there. Of several writers at once one wins, where the file system has hard links.

    Raises:
        FileExistsError: `path` is there, and `replace` is False.
        OSError: the disk is full, or the folder is not writable; what `path` held stays, and nothing is left behind.
    """
    target = os.path.abspath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:_NAME_CHARACTERS]}.{os.urandom(8).hex()}{_MARK}")
    try:
        file = open(temporary, "xb")
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        with naming(path), file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if replace:
            os.replace(temporary, target)
        else:
            _rename_to_new(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _flush_folder(folder)


def _rename_to_new(path: str, target: str) -> None:
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(path, target)
    else:
        os.unlink(path)


def _flush_folder(folder: str) -> None:
    """Flush a rename to the disk, where the file system can: some refuse it for folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_temporary(path: str | os.PathLike) -> bool:
    """Whether `open_atomic` gave a file this name, which lasts only while it writes."""
    return _TEMPORARY.fullmatch(os.path.basename(path)) is not None


def remove_leftover(path: str | os.PathLike, seconds: float = LEFTOVER_SECONDS) -> None:
    """Remove a temporary file without a write for this many seconds: its process was killed."""
    if is_temporary(path):
        with suppress(OSError):
            if time.time() - os.lstat(path).st_mtime >= seconds:
                os.unlink(path)


def remove_leftovers(folder: str | os.PathLike, seconds: float = LEFTOVER_SECONDS) -> None:
    """`remove_leftover` for each file of a folder, not of those below it."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            remove_leftover(entry.path, seconds)


def write_bytes(path: str | os.PathLike, content: bytes, replace: bool = True) -> None:
    """Write a file. `replace`, and OSError: as for `open_atomic`; so for all functions below."""
    with open_atomic(path, replace=replace) as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str, replace: bool = True) -> None:
    """Write a text in UTF-8."""
    write_bytes(path, text.encode(), replace)


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV in UTF-8 with a header; bytes of file names that are not UTF-8 become \\udcXX."""
    with open_csv(path, columns) as table:
        table.writerows(rows)


@contextmanager
def open_csv(path: str | os.PathLike, columns: Sequence[str]) -> Iterator[Any]:
    """As `write_csv`, for rows that come one after the other: the csv.writer, with the header written."""
    with open_atomic(path) as file:
        text = TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        table = csv.writer(_Lines(text), lineterminator="\r\n")
        table.writerow(columns)
        yield table
        text.detach()


class _Lines:
    """Ends the rows of a csv.writer in \\n. It writes them with \\r\\n, since it quotes only characters that end its rows."""

    def __init__(self, text: TextIO):
        self._text = text

    def write(self, row: str) -> int:
        return self._text.write(f"{row[:-2]}\n")


def write_npz(path: str | os.PathLike, *arrays: np.ndarray, **named: Any) -> None:
    """Write arrays as `numpy.savez` does: `arr_0`, `arr_1`, …, and those with names under their names."""
    with open_atomic(path) as file:
        np.savez(file, *arrays, **named)


def write_figure(path: str | os.PathLike, figure: "Figure", program: str, dpi: int = 100) -> None:
    """Draw a matplotlib figure in the format of the file's suffix; its metadata name the program (`outputs.drawn_by`)."""
    kind = Path(path).suffix.lstrip(".") or "png"
    with open_atomic(path) as file:
        figure.savefig(file, format=kind, dpi=dpi, metadata={"Software" if kind == "png" else "Creator": program})
