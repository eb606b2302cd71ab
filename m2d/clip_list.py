"""Lists of clips: a CSV read once, its texts held as bytes so that millions of names stay cheap in every worker."""

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import pandas as pd

_ROWS_AT_ONCE = 100_000
_WHO_WRITES = {"label": ": util/make_as_weighted_list.py writes one", "weight": ": util/make_as_weighted_list.py writes one"}


class TextColumn:
    """An immutable column of texts: one uint8 blob of UTF-8 and int64 offsets `[n + 1]`.

    Costs the texts' own bytes and 8 more each; copied by fork and pickle as two arrays.
    """

    def __init__(self, blob: np.ndarray, offsets: np.ndarray):
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> "TextColumn":
        """The column that holds these texts."""
        encoded = [text.encode() for text in texts]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        offsets[1:] = list(accumulate(map(len, encoded)))
        return cls(np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets)

    @classmethod
    def join(cls, columns: Sequence["TextColumn"]) -> "TextColumn":
        """The texts of several columns, one after the other."""
        ends = [np.zeros(1, dtype=np.int64)]
        for column in columns:
            ends.append(column.offsets[1:] + ends[-1][-1])
        return cls(np.concatenate([c.blob for c in columns] or [np.zeros(0, np.uint8)]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        i = i % len(self)
        return self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (text.decode() for text in self._pieces())

    def _pieces(self) -> list[bytes]:
        blob, offsets = self.blob.tobytes(), self.offsets.tolist()
        return [blob[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]

    def argsort(self) -> np.ndarray:
        """Indices `[n]` that sort the texts by code point (as Python sorts them); equal texts keep their order."""
        pieces = self._pieces()
        if all(a <= b for a, b in zip(pieces, pieces[1:], strict=False)):
            return np.arange(len(self))
        return np.array(sorted(range(len(self)), key=pieces.__getitem__), dtype=np.int64)

    def take(self, indices: np.ndarray) -> "TextColumn":
        """The column of the texts at these indices."""
        lengths = np.diff(self.offsets)[indices]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        pieces = self._pieces()
        blob = b"".join([pieces[i] for i in indices.tolist()])
        return TextColumn(np.frombuffer(blob, dtype=np.uint8), offsets)


class ClipList:
    """The clips of a run, from a CSV.

    Attributes:
        source: the CSV.
        columns: the columns that were read, by name.
        rows: line in the CSV of each clip, int32 `[n]` (the header is line 1).
    """

    def __init__(self, source: Path, columns: dict[str, TextColumn], rows: np.ndarray):
        self.source, self.columns, self.rows = source, columns, rows

    @property
    def names(self) -> TextColumn:
        """File names, relative to the data folder."""
        return self.columns["file_name"]

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """Where clip i stands: "data/x.csv row 17"."""
        return f"{self.source} row {self.rows[i]}"

    def digest(self) -> str:
        """A hash of the list's content and order."""
        state = hashlib.sha256()
        for name in sorted(self.columns):
            column = self.columns[name]
            state.update(f"{name} {len(column)} ".encode())
            state.update(column.offsets.data)
            state.update(column.blob.data)
        return state.hexdigest()

    def sort(self) -> "ClipList":
        """The same list in the order of its file names."""
        order = self.names.argsort()
        if np.array_equal(order, np.arange(len(self))):
            return self
        return ClipList(self.source, {k: c.take(order) for k, c in self.columns.items()}, self.rows[order])


def read_list(csv_path: str | Path, columns: Sequence[str] = ("file_name",), optional: Sequence[str] = ()) -> ClipList:
    """Read a list of clips in the order of its CSV.

    Args:
        csv_path: a CSV (UTF-8) with a header.
        columns: columns it must have, `file_name` among them.
        optional: columns that are read where the list has them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it lacks a column, lists nothing, has a row without a value in one of `columns`, or is no CSV.
    """
    path = Path(csv_path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list (a CSV with a column file_name)")
    try:
        header = list(pd.read_csv(path, dtype=str, nrows=0).columns)
        _check_header(path, header, columns)
        wanted = [*columns, *(c for c in optional if c in header)]
        parts, rows = _read_parts(path, wanted, columns)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty: a header with file_name and one clip a line are expected") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a CSV in UTF-8: {error}") from error
    if not len(rows):
        raise ValueError(f"{path}: the list is empty, there is no clip below its header")
    return ClipList(path, {name: TextColumn.join([part[name] for part in parts]) for name in wanted}, rows)


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    for column in columns:
        if column in header:
            continue
        close = difflib.get_close_matches(column, header, n=1, cutoff=0.5)
        if any(name.endswith((".npy", ".npz")) for name in header):
            hint = f": its first line is a clip already; put the line {','.join(columns)} above it"
        elif close:
            hint = f": rename {close[0]!r}?"
        else:
            hint = _WHO_WRITES.get(column, ": one path a line, relative to --data_path")
        raise ValueError(f"{path}: no column {column} (its columns: {', '.join(header)}){hint}")


def _read_parts(path: Path, wanted: list[str], required: Sequence[str]) -> tuple[list[dict[str, TextColumn]], np.ndarray]:
    """The columns in parts, so that the memory of the parsed text stays small, and the lines they stand in."""
    parts, rows, line = [], [], 2
    reader = pd.read_csv(
        path, dtype=object, usecols=wanted, keep_default_na=False, skip_blank_lines=False, chunksize=_ROWS_AT_ONCE
    )
    with reader:
        for table in reader:
            table = table.fillna("")
            blank = np.logical_and.reduce([table[name].to_numpy() == "" for name in wanted])
            lines = np.arange(line, line + len(table), dtype=np.int32)[~blank]
            line += len(table)
            table = table[~blank]
            for name in required:
                empty = np.flatnonzero(table[name].to_numpy() == "")
                if len(empty):
                    raise ValueError(f"{path} row {lines[empty[0]]}: no {name}")
            parts.append({name: TextColumn.of(table[name]) for name in wanted})
            rows.append(lines)
    return parts, np.concatenate(rows or [np.zeros(0, np.int32)])
