"""Results of a long run, kept on disk as they come, so that a killed run loses nothing that was done."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from ..utils.atomic_file import write_text
from ..utils.errors import FileError, UserError
from ..utils.names import shown
from ..utils.own_file import open_own

# What was done since the last flush is what a kill costs.
_FLUSH_SECONDS = 5.0
_COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class FileResult:
    """The result of one file.

    `size` and `mtime_ns` tell whether the file is still the one that was read; `samples` and `frames` are the waveform's and
    the spectrogram's. `extents` tells where its rows are, in order: pairs of a first row and a number of rows.
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
    """Size and time of a file, which tell whether it has changed; zeros where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


class PartialResults:
    """The folder `OUT.partial`: settings.json, files.jsonl (a FileResult a line), rows.f32 (float32 rows, in no order).

    Opening it again with the same settings continues what an earlier process left. Use it in a `with` block.

    Args:
        out: the program's output, which is made of this at the end.
        settings: what the rows depend on beside the files.
        width: values of a row.
        start_over: remove results of other settings.

    Raises:
        ValueError: the folder holds results of other settings, or another process writes to it.
        OSError: it cannot be written.
    """

    def __init__(self, out: Path, settings: dict[str, object], width: int, start_over: bool = False):
        self.folder = out.with_name(out.name + ".partial")
        self.width = width
        self.done: dict[str, FileResult] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.folder.is_symlink():
            raise UserError(f"{shown(self.folder)} is a link: move it away")
        self._list = open_own(self.folder / "files.jsonl", "a+")
        try:
            self._lock(out)
            self._check(out, json.dumps({**settings, "width": width}, sort_keys=True), start_over)
            open_own(self.folder / "rows.f32").close()
            self._rows = open_own(self.folder / "rows.f32", "r+b")
        except BaseException:
            self._list.close()
            raise
        self._read_done()
        self._statuses: dict[str, tuple[int, int]] = {}
        self._unflushed: list[FileResult] = []
        self._flushed_at = time.monotonic()

    def _lock(self, out: Path) -> None:
        try:
            fcntl.lockf(self._list, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process is writing {shown(out)}") from None

    def _check(self, out: Path, settings: str, start_over: bool) -> None:
        path = self.folder / "settings.json"
        there = path.read_text() if path.exists() else None
        if there not in (None, settings):
            if not start_over:
                raise ValueError(
                    f"{shown(self.folder)} holds results of a run with other weights or flags: run that command again to "
                    f"continue it, or give another --out, or --overwrite to start over"
                )
            self._list.truncate(0)
            (self.folder / "rows.f32").unlink(missing_ok=True)
        write_text(path, settings)

    def _read_done(self) -> None:
        held = os.fstat(self._rows.fileno()).st_size // (4 * self.width)
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
            if all(row + count <= held for row, count in result.extents):
                self.done[result.path] = result
        self._end = held

    def todo(self, paths: Iterable[Path]) -> list[Path]:
        """The files without a result, and those that have changed since; `add` records them as they are now."""
        left = []
        for path in paths:
            result = self.done.get(str(path))
            status = self._statuses[str(path)] = _status(path)
            if result is None or (result.size, result.mtime_ns) != status:
                left.append(path)
        return left

    def append(self, values: np.ndarray) -> list[int]:
        """Write rows `[n, width]`; returns their extent."""
        first, self._end = self._end, self._end + len(values)
        self._rows.seek(first * 4 * self.width)
        self._rows.write(np.ascontiguousarray(values, dtype="<f4").data)
        return [first, len(values)]

    def add(self, path: Path, samples: int, frames: int, extents: list[list[int]]) -> None:
        """A file that `todo` named is done: its rows were appended."""
        result = FileResult(str(path), *self._statuses[str(path)], samples, frames, extents)
        self.done[result.path] = result
        self._unflushed.append(result)
        if time.monotonic() - self._flushed_at >= _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make what is done last: rows first, so that the list never names rows that are not on the disk."""
        self._rows.flush()
        os.fsync(self._rows.fileno())
        self._list.writelines(json.dumps(asdict(result)) + "\n" for result in self._unflushed)
        self._list.flush()
        os.fsync(self._list.fileno())
        self._unflushed.clear()
        self._flushed_at = time.monotonic()

    def blocks(self, result: FileResult) -> Iterator[bytes]:
        """The rows of a file as bytes, a few MB at a time."""
        for row, count in result.extents:
            self._rows.seek(row * 4 * self.width)
            left = count * 4 * self.width
            while left:
                block = self._rows.read(min(left, _COPY_BYTES))
                if not block:
                    raise OSError(f"{shown(self.folder)}/rows.f32 was truncated by another program")
                left -= len(block)
                yield block

    def remove(self) -> None:
        """The output is written: nothing of this is needed."""
        shutil.rmtree(self.folder)

    def __enter__(self) -> "PartialResults":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.folder.exists():
            self.flush()
        self._rows.close()
        self._list.close()
