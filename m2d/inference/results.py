"""Results of files, kept on disk as they come, so that a killed run loses nothing that was done."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np

from ..utils.atomic_file import naming
from ..utils.errors import FileError
from ..utils.names import shown
from ..utils.own_files.own_file import open_own
from ..utils.own_files.partial_rows import PartialRows

# What was done since the last flush is what a kill costs.
_FLUSH_SECONDS = 5.0
_LIST = "files.jsonl"


@dataclass(frozen=True)
class FileResult:
    """The result of one file.

    `size` and `mtime_ns` tell whether the file is still the one that was read; `samples` and `frames` are the waveform's and
    the spectrogram's. `extents`: where its rows are, in order: pairs of a first row and a number of rows.
    """

    path: str
    size: int
    mtime_ns: int
    samples: int
    frames: int
    extents: list[list[int]]

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(count for _, count in self.extents)


def _status(path: Path) -> tuple[int, int]:
    """Size and time of a file, to detect changes; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


class PartialResults(PartialRows):
    """Rows of files, float32: beside them, files.jsonl has a FileResult a line. The rows are in no order.

    Args:
        out, settings, width, start_over: as for PartialRows.

    Attributes:
        done: results by the file's path.

    Raises:
        UserError, OSError: as PartialRows.
        FileError: the list of files is damaged.
    """

    def __init__(self, out: Path, settings: dict[str, object], width: int, start_over: bool = False):
        super().__init__(out, settings, width, np.float32, start_over)
        self.done: dict[str, FileResult] = {}
        self._statuses: dict[str, tuple[int, int]] = {}
        self._unflushed: list[FileResult] = []
        self._flushed_at = time.monotonic()
        try:
            self._list = open_own(self.folder / _LIST, "a+")
            self._read_done()
        except BaseException:
            super().__exit__(None, None, None)
            raise

    def _clear(self) -> None:
        super()._clear()
        (self.folder / _LIST).unlink(missing_ok=True)

    def _read_done(self) -> None:
        self._list.seek(0)
        lines = self._list.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # cut by a kill
            lines.pop()
            self._list.truncate(sum(len(line.encode()) for line in lines))
        for line in lines:
            try:
                result = FileResult(**json.loads(line))
            except (ValueError, TypeError):
                raise FileError(f"{shown(self.folder)} holds results that are damaged: --overwrite starts over") from None
            if all(row + count <= self.rows for row, count in result.extents):
                self.done[result.path] = result

    def todo(self, paths: Iterable[Path]) -> list[Path]:
        """The files without a result, and those that have changed since; `add` records them as they are now."""
        left = []
        for path in paths:
            result = self.done.get(str(path))
            status = self._statuses[str(path)] = _status(path)
            if result is None or (result.size, result.mtime_ns) != status:
                left.append(path)
        return left

    def add(self, path: Path, samples: int, frames: int, extents: list[list[int]]) -> None:
        """A file that `todo` named is done: its rows were appended."""
        result = FileResult(str(path), *self._statuses[str(path)], samples, frames, extents)
        self.done[result.path] = result
        self._unflushed.append(result)
        if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make what is done last: rows first, so that the list never names rows that are not on the disk."""
        super().flush()
        with naming(self.folder / _LIST):
            self._list.writelines(json.dumps(vars(result)) + "\n" for result in self._unflushed)
            self._list.flush()
            os.fsync(self._list.fileno())
        self._unflushed.clear()
        self._flushed_at = time.monotonic()

    def blocks_of(self, results: Iterable[FileResult]) -> Iterator[bytes]:
        """The rows of files, one file after the other, as bytes, a few MB at a time."""
        first = count = 0
        for row, more in chain.from_iterable(result.extents for result in results):
            if row != first + count:
                yield from self.blocks(first, count)
                first, count = row, 0
            count += more
        yield from self.blocks(first, count)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.folder.exists():
            self.flush()
        self._list.close()
        super().__exit__(kind, error, traceback)
