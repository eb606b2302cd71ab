"""Lists of clips: a CSV read once, its texts held as bytes so that millions of names stay cheap in every worker."""

import codecs
import difflib
import hashlib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from ..audio.listing import FFMPEG_SUFFIXES, SNDFILE_SUFFIXES
from ..audio.sources.find import ARCHIVE_SUFFIXES
from ..utils.errors import FileError

_OTHER_ENCODINGS = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}
_OTHER_SEPARATORS = {";": "';'", "\t": "tabs"}
_CLIPS = (".npy", ".npz", *SNDFILE_SUFFIXES, *FFMPEG_SUFFIXES)
_EMPTY = "the list is empty, there is no clip below its header"
_WHO_WRITES = {
    "label": "; labelled lists begin with file_name,label[,split][,group]; util/make_as_weighted_list.py writes AudioSet's",
    "weight": ": util/make_as_weighted_list.py writes one",
}


class TextColumn:
    """An immutable column of texts: one uint8 blob of UTF-8 and int64 offsets `[n + 1]`.

    Costs the texts' own bytes and 8 more each; goes to a worker, by fork or pickle, as two arrays.
    """

    def __init__(self, blob: np.ndarray, offsets: np.ndarray):
        self.blob, self.offsets = blob, offsets

    @classmethod
    def of(cls, texts: Iterable[str]) -> "TextColumn":
        """The column that holds these texts."""
        return cls.from_arrow(pa.array(texts, pa.large_string()))

    @classmethod
    def from_arrow(cls, array: pa.Array) -> "TextColumn":
        """The column that holds an Arrow array's texts."""
        if not len(array):
            return cls(np.zeros(0, np.uint8), np.zeros(1, np.int64))
        array = array.cast(pa.large_string())
        _, offsets, blob = array.buffers()
        offsets = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        blob = np.frombuffer(blob, np.uint8) if blob is not None else np.zeros(0, np.uint8)
        return cls(blob[offsets[0] : offsets[-1]].copy(), offsets - offsets[0])

    @classmethod
    def join(cls, columns: Sequence["TextColumn"]) -> "TextColumn":
        """The texts of several columns, one after the other."""
        begins = np.cumsum([0, *(c.offsets[-1] for c in columns)])
        offsets = [np.zeros(1, np.int64), *(c.offsets[1:] + begin for c, begin in zip(columns, begins, strict=False))]
        return cls(np.concatenate([c.blob for c in columns]), np.concatenate(offsets))

    def to_arrow(self) -> pa.Array:
        """An Arrow array on the same memory."""
        return pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(self.offsets), pa.py_buffer(self.blob))

    def check(self, name: str, count: int) -> None:
        """Raise ValueError where this is no column of `count` texts: arrays from a file may hold anything."""
        blob, offsets = self.blob, self.offsets
        if blob.dtype != np.uint8 or blob.ndim != 1 or offsets.dtype != np.int64 or offsets.shape != (count + 1,):
            raise ValueError(f"{name}: {blob.dtype} {blob.shape} and {offsets.dtype} {offsets.shape}, expected {count} texts")
        if offsets[0] != 0 or offsets[-1] != len(blob) or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name}: offsets that do not fit its {len(blob)} bytes")
        self.to_arrow().validate(full=True)  # UTF-8

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> str:
        if not -len(self) <= i < len(self):
            raise IndexError(f"text {i} of {len(self)}")
        i = i % len(self)
        return self.blob[self.offsets[i] : self.offsets[i + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        return (text.as_py() for text in self.to_arrow())

    def argsort(self) -> np.ndarray:
        """Indices `[n]` that sort the texts by code point (as Python sorts them); equal texts keep their order."""
        return pc.array_sort_indices(self.to_arrow()).to_numpy().astype(np.int64)

    def take(self, indices: np.ndarray) -> "TextColumn":
        """The column of the texts at these indices."""
        column = TextColumn.from_arrow(self.to_arrow().take(pa.array(indices)))
        pa.default_memory_pool().release_unused()
        return column


def columns_digest(columns: Mapping[str, TextColumn]) -> str:
    """A hash of columns' content and order."""
    state = hashlib.sha256()
    for name in sorted(columns):
        column = columns[name]
        state.update(f"{name} {len(column)} ".encode())
        state.update(column.offsets.data)
        state.update(column.blob.data)
    return state.hexdigest()


class ClipList:
    """The clips of a run, from a CSV.

    Attributes:
        source: the CSV.
        columns: the columns that were read, by name.
        rows: row in the CSV of each clip, int32 `[n]` (the header is row 1).
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
        """Clip i for a message: "data/x.csv row 17"."""
        return f"{self.source} row {self.rows[i]}"

    def digest(self) -> str:
        """A hash of the list's content and order."""
        return columns_digest(self.columns)

    def sort(self) -> "ClipList":
        """The same clips in the order of their file names."""
        order = self.names.argsort()
        return self if np.array_equal(order, np.arange(len(self))) else self.take(order)

    def take(self, order: np.ndarray) -> "ClipList":
        """The clips at these places, int64 `[n]`."""
        return ClipList(self.source, {name: column.take(order) for name, column in self.columns.items()}, self.rows[order])


def read_list(
    csv_path: str | Path,
    columns: Sequence[str] = ("file_name",),
    optional: Sequence[str] = (),
    valued: Sequence[str] | None = None,
) -> ClipList:
    """Read a list of clips in the order of its CSV.

    Args:
        csv_path: a CSV (UTF-8) with a header. Blank lines are skipped.
        columns: columns it must have: one or more.
        optional: columns that are read where the list has them.
        valued: those of `columns` that must have a value in every row; by default all.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is no CSV in UTF-8, a column or a value is missing (the row is named), or it lists nothing.
    """
    path = Path(csv_path)
    header = read_header(path)
    _check_header(path, header, columns)
    wanted = [*columns, *(c for c in optional if c in header)]
    with _read_errors(path):
        parts = [{name: TextColumn.from_arrow(batch.column(name)) for name in wanted} for batch in _open(path, wanted)]
    if not parts:
        raise FileError(f"{path}: {_EMPTY}")
    texts = {name: TextColumn.join([part.pop(name) for part in parts]) for name in wanted}
    rows = np.arange(2, 2 + len(texts[wanted[0]]), dtype=np.int32)
    pa.default_memory_pool().release_unused()
    return _without_empty_rows(ClipList(path, texts, rows), columns if valued is None else valued)


def read_header(csv_path: str | Path) -> list[str]:
    """The columns of a CSV.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it is a folder, or no CSV in UTF-8.
    """
    path = Path(csv_path)
    if path.is_dir():
        raise FileError(
            f"{path}: a folder, where a list is expected: a CSV with a column file_name, as m2d convert --csv writes it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list (a CSV with a column file_name)")
    _check_encoding(path)
    with _read_errors(path):
        return _open(path, []).schema.names


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """What goes wrong within is raised as FileError."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise FileError(f"{path}: cannot be read as a CSV in UTF-8 with a header: {reason[:300]}") from error


def _check_encoding(path: Path) -> None:
    if path.name.lower().endswith(ARCHIVE_SUFFIXES):
        packed = shlex.join(["m2d", "pack", str(path), "--out", str(path.with_suffix(".pack"))])
        raise FileError(f"{path}: an archive, no list; {packed} makes a pack of the audio in it")
    with path.open("rb") as file:
        begin = file.read(4096)
    for encoding, marks in _OTHER_ENCODINGS.items():
        if begin.startswith(marks):
            raise FileError(f"{path}: a list in {encoding}: save it as UTF-8 (iconv -f {encoding} -t UTF-8)")
    if b"\0" in begin:
        raise FileError(f"{path}: no list: zero bytes in it; a list is a CSV in UTF-8")


def _open(path: Path, wanted: Sequence[str]) -> csv.CSVStreamingReader:
    types = dict.fromkeys(wanted, pa.large_string())
    return csv.open_csv(
        path,
        csv.ReadOptions(use_threads=False),
        csv.ParseOptions(ignore_empty_lines=False),  # a blank line is a row without values, so that rows are lines
        csv.ConvertOptions(column_types=types, include_columns=list(wanted), strings_can_be_null=False),
    )


def _without_empty_rows(clips: ClipList, required: Sequence[str]) -> ClipList:
    """Drop rows without any value; raise FileError for one without a required value, and for an empty list."""
    empty = {name: np.diff(column.offsets) == 0 for name, column in clips.columns.items()}
    blank = np.logical_and.reduce(list(empty.values()))
    for name in required:
        missing = np.flatnonzero(empty[name] & ~blank)
        if len(missing):
            raise FileError(f"{clips.where(missing[0])}: no {name}")
    if blank.all():
        raise FileError(f"{clips.source}: {_EMPTY}")
    if not blank.any():
        return clips
    return clips.take(np.flatnonzero(~blank))


def _check_header(path: Path, header: list[str], columns: Sequence[str]) -> None:
    for column in columns:
        if header.count(column) > 1:
            raise FileError(f"{path}: the column {column} is there twice")
        if column in header:
            continue
        for separator, name in _OTHER_SEPARATORS.items():
            if column in header[0].split(separator):
                raise FileError(f"{path}: columns separated by {name}: save it as a CSV with commas")
        close = difflib.get_close_matches(column, header, n=1, cutoff=0.5)
        if any(name.lower().endswith(_CLIPS) for name in header):
            hint = f": its first line is a clip already; put the line {','.join(columns)} above it"
        elif close:
            hint = f": rename {close[0]!r}?"
        else:
            hint = _WHO_WRITES.get(column, ": one path a line")
        shown = ", ".join(header)[:200]
        raise FileError(f"{path}: no column {column} (its columns: {shown}){hint}")
