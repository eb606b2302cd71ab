"""Audio in the rows of a parquet file, as the datasets of Hugging Face have it: a column of bytes, each with a path."""

import io
import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from ...utils.errors import UserError
from .archive_file import named, open_archive
from .member import MOST_BYTES, Contents, not_readable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS_AT_ONCE = 8
_MOST_GROUP_BYTES = 1 << 32
_MOST_FOOTER_BYTES = 1 << 28
_TAIL = struct.Struct("<I4s")  # the footer's size, and the mark of the file's end


class ParquetRow(NamedTuple):
    """The audio of one row: its row group, and its row there."""

    path: str
    column: str
    group: int
    row: int

    in_turn = True

    def read(self) -> bytes:
        """As `Place.read`; fast for rows one after the other."""
        content = _group(self.path, self.column, self.group).row(self.row)
        if content is None:
            raise ValueError("has no audio bytes in its row (a path alone is not followed)")
        if len(content) > MOST_BYTES:
            raise ValueError(f"has {len(content) >> 20} MiB; at most {MOST_BYTES >> 20} are read from a row")
        return content

    def texts(self, columns: Sequence[str], separator: str) -> tuple[str, ...]:
        """The row's values of other columns as texts: classes by their names, several values joined by `separator`.

        Raises:
            FileError: they cannot be read, or a value has the separator in it.
        """
        return _texts(self.path, self.group, tuple(columns), separator)[self.row]


def columns_of(path: str) -> list[str]:
    """The names of a parquet file's columns.

    Raises:
        As parquet_contents.
    """
    with _opened(path) as file:
        return file.schema_arrow.names


def parquet_contents(path: str, is_audio: Callable[[str], bool]) -> Contents:
    """The audio files of a parquet file, named by the last part of their paths, or by their row's number.

    Args:
        path: the file.
        is_audio: tells by a name whether it is wanted; a name without a suffix is.

    Raises:
        OSError: it cannot be opened.
        StorageError: it cannot be fetched.
        FileError: it is no parquet file, damaged, or has no column of audio.
        UserError: Arrow is not installed.
    """
    contents = Contents()
    _group.cache_clear()  # of a file that may have been replaced
    _texts.cache_clear()
    with _opened(path) as file:
        column, path_column = _audio_column(file.schema_arrow, path)
        rows = 0
        for group in range(file.num_row_groups):
            first, rows = rows, rows + file.metadata.row_group(group).num_rows
            size = file.metadata.row_group(group).total_byte_size
            if not 0 <= size <= _MOST_GROUP_BYTES:
                contents.leave_out(f"row group {group}", f"has {size >> 20} MiB, at most {_MOST_GROUP_BYTES >> 20} are read")
                continue
            try:
                names = _names(file, group, path_column, range(first, rows))
            except (OSError, ValueError) as error:
                contents.leave_out(f"row group {group}", f"is damaged ({_one_line(error)})")
                continue
            for row, name in enumerate(names):
                if is_audio(name) or not PurePosixPath(name).suffix:
                    contents.add(name, ParquetRow(path, column, group, row), 0)
    return contents


@lru_cache(maxsize=1)
def _texts(path: str, group: int, columns: tuple[str, ...], separator: str) -> list[tuple[str, ...]]:
    with _opened(path) as file:
        features = _features(file.schema_arrow)
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise not_readable(path, f"no column {', '.join(missing)} (its columns: {', '.join(file.schema_arrow.names)[:200]})")
        try:
            table = file.read_row_group(group, columns=list(columns), use_threads=False)
            values = [table.column(name).to_pylist() for name in columns]
        except (OSError, ValueError) as error:
            raise not_readable(path, f"row group {group} is damaged ({_one_line(error)})") from None
    try:
        written = [
            [_text(value, _class_names(features.get(name)), separator) for value in column]
            for name, column in zip(columns, values, strict=True)
        ]
    except ValueError as error:
        raise not_readable(path, error) from None
    return list(zip(*written, strict=True))


def _text(value: object, names: Sequence[str], separator: str) -> str:
    if isinstance(value, list):
        texts = [_text(each, names, separator) for each in value]
        for text in texts:
            if separator in text:
                raise ValueError(f"{text!r} is one of several labels and holds {separator!r}: give another --separator")
        return separator.join(texts)
    if isinstance(value, (dict, bytes)):
        raise ValueError("a column of records or bytes cannot be written into a list")
    if names and isinstance(value, int):
        if not -1 <= value < len(names):
            raise ValueError(f"class {value} of {len(names)}")
        return names[value] if value >= 0 else ""  # -1: not labelled
    return "" if value is None else str(value)


def _class_names(feature: object) -> list[str]:
    """The names of the classes whose numbers a column, or the lists in it, holds."""
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if isinstance(feature, dict) and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
    return [str(name) for name in names] if isinstance(names, list) else []


class _Group:
    """The audio of a row group, read once from its first row to its last."""

    def __init__(self, path: str, column: str, group: int):
        self._arguments = path, column, group
        self._next, self._rows = 0, _rows(*self._arguments)
        self._error: Exception | None = None

    def row(self, row: int) -> bytes | None:
        if self._error is not None:
            raise self._error
        if row < self._next:
            self._next, self._rows = 0, _rows(*self._arguments)
        try:
            for content in self._rows:
                self._next += 1
                if self._next > row:
                    return content
            raise ValueError("it ends before its number of rows")
        except (OSError, ValueError, MemoryError) as error:
            self._error = ValueError(f"is in a damaged row group ({_one_line(error)})")
            raise self._error from None


@lru_cache(maxsize=1)
def _group(path: str, column: str, group: int) -> _Group:
    return _Group(path, column, group)


def _rows(path: str, column: str, group: int) -> Iterator[bytes | None]:
    with _opened(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False):
            values = batch.column(0)
            if "." in column:
                (values,) = values.flatten()
            for i in range(len(values)):
                yield values[i].as_py()


def _opened(path: str) -> "pq.ParquetFile":
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(f"{named(path)}: reading parquet files needs Arrow: pip install 'm2d-audio[train]'") from None
    file = io.BufferedReader(open_archive(path))
    try:
        _check_footer(file)
        return pq.ParquetFile(pa.PythonFile(file, "r"), pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError, ValueError) as error:
        file.close()
        raise not_readable(path, f"no parquet file, or damaged, or cut short ({_one_line(error)})") from None


def _check_footer(file: io.BufferedReader) -> None:
    """Refuse a footer that Arrow would fill the memory with."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL.size))
    tail = file.read(_TAIL.size)
    size = _TAIL.unpack(tail)[0] if len(tail) == _TAIL.size else 0
    if size > _MOST_FOOTER_BYTES and tail.endswith(b"PAR1"):
        raise ValueError(f"a footer of {size >> 20} MiB, at most {_MOST_FOOTER_BYTES >> 20} are read")
    file.seek(0)


def _names(file: "pq.ParquetFile", group: int, column: str | None, rows: range) -> list[str]:
    texts: list[str | None] = [None] * len(rows)
    if column is not None:
        paths = file.read_row_group(group, columns=[column], use_threads=False).column(0).to_pylist()
        texts = [path["path"] if path else None for path in paths]
    return [PurePosixPath(text or "").name or f"{row:08d}" for row, text in zip(rows, texts, strict=True)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _audio_column(schema: "pa.Schema", path: str) -> tuple[str, str | None]:
    """The column of the bytes, and that of the paths, if there is one."""
    import pyarrow.types as kinds

    def is_bytes(kind: "pa.DataType") -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    def is_text(kind: "pa.DataType") -> bool:
        return kinds.is_string(kind) or kinds.is_large_string(kind)

    for name in dict.fromkeys(["audio", *_declared_audio(schema)]):
        if schema.get_field_index(name) < 0:
            continue
        kind = schema.field(name).type
        if is_bytes(kind):
            return name, None
        if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type):
            has_paths = kind.get_field_index("path") >= 0 and is_text(kind.field("path").type)
            return f"{name}.bytes", f"{name}.path" if has_paths else None
    raise not_readable(path, f"no column of audio bytes in it (its columns: {', '.join(schema.names)[:200]})")


def _declared_audio(schema: "pa.Schema") -> list[str]:
    """The columns that the datasets of Hugging Face call audio."""
    return [name for name, feature in _features(schema).items() if isinstance(feature, dict) and feature.get("_type") == "Audio"]


def _features(schema: "pa.Schema") -> dict[str, object]:
    """What the datasets of Hugging Face say about columns."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
