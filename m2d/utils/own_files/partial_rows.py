"""Rows of a long run, kept on disk as they come, so that a killed run loses nothing that was done."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

import numpy as np

from ..atomic_file import naming, write_text
from ..errors import UserError
from ..names import shown
from .lock import LockedError, hold_lock
from .own_file import open_own

_COPY_BYTES = 1 << 24

Self = TypeVar("Self", bound="PartialRows")


class PartialRows:
    """The folder `OUT.partial`: settings.json, and rows.f32 or rows.f16, the rows that are done.

    Opening it again with the same settings continues what an earlier process left. Use it in a `with` block.

    Args:
        out: the program's output, which is made of this at the end.
        settings: what the rows depend on, by names that a user knows.
        width: values of a row.
        dtype: float32 or float16.
        start_over: remove rows of other settings.

    Attributes:
        folder: the folder.
        width: values of a row.
        rows: number of rows that are done.

    Raises:
        UserError: the folder holds rows of other settings, is a link, or another process writes to it.
        OSError: it cannot be written.
    """

    def __init__(
        self,
        out: Path,
        settings: Mapping[str, object],
        width: int,
        dtype: type[np.floating] = np.float32,
        start_over: bool = False,
    ):
        self.folder, self.width = out.with_name(out.name + ".partial"), width
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._row_bytes = width * self._dtype.itemsize
        self._path = self.folder / f"rows.f{8 * self._dtype.itemsize}"
        if self.folder.is_symlink():
            raise UserError(f"{shown(self.folder)} is a link: move it away")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = hold_lock(self.folder / "lock")
        except LockedError:
            raise UserError(f"another process is writing {shown(out)}") from None
        try:
            self._check({**settings, "width": width}, start_over)
            self._file: IO[Any] = open_own(self._path, "a+b")
        except BaseException:
            self._lock.close()
            raise
        self.rows = self._file.seek(0, os.SEEK_END) // self._row_bytes
        self._file.truncate(self.rows * self._row_bytes)  # a kill may have cut the last row

    def _check(self, settings: dict[str, object], start_over: bool) -> None:
        path = self.folder / "settings.json"
        text = json.dumps(settings, sort_keys=True)
        there = path.read_text() if path.exists() else None
        if there not in (None, text):
            if not start_over:
                raise UserError(
                    f"{shown(self.folder)} holds results of a run with other {_differing(there, settings)}: run that command "
                    "again to continue it, or give another --out, or --overwrite to start over"
                )
            self._clear()
        write_text(path, text)

    def _clear(self) -> None:
        """Remove rows of other settings."""
        self._path.unlink(missing_ok=True)

    def append(self, values: np.ndarray) -> list[int]:
        """Write rows `[n, width]`; returns the first one's number, and n."""
        first, self.rows = self.rows, self.rows + len(values)
        with naming(self._path):
            self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        return [first, len(values)]

    def flush(self) -> None:
        """Make sure that the rows are on the disk."""
        with naming(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def all(self) -> np.ndarray:
        """All rows `[rows, width]`, on the disk."""
        self._file.flush()
        return np.memmap(self._path, self._dtype, mode="r", shape=(self.rows, self.width))

    def blocks(self, first: int, count: int) -> Iterator[bytes]:
        """Rows as bytes, a few MB at a time."""
        self._file.seek(first * self._row_bytes)
        left = count * self._row_bytes
        while left:
            block = self._file.read(min(left, _COPY_BYTES))
            if not block:
                raise OSError(f"{shown(self._path)} was truncated by another program")
            left -= len(block)
            yield block

    def remove(self) -> None:
        """The output is written: nothing of this is needed."""
        shutil.rmtree(self.folder)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with naming(self._path):
            self._file.close()
        self._lock.close()


def _differing(there: str, settings: Mapping[str, object]) -> str:
    """Names of the settings that differ from those in a text."""
    try:
        before = dict(json.loads(there))
    except (ValueError, TypeError):
        return "settings"
    return ", ".join(sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key)))
