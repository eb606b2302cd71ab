"""Captions by the id of their clip: texts of a CSV, or embeddings that a text encoder made of them.

A file of embeddings (.safetensors or .npz; `m2d captions` writes it) holds

    embeddings   [captions, E]   float16 or float32, all captions of an id one after the other
    offsets      [ids + 1]       int64: id i has the captions offsets[i] to offsets[i + 1]
    ids          [bytes]         uint8: the ids, in UTF-8, one after the other
    id_offsets   [ids + 1]       int64: id i is the bytes id_offsets[i] to id_offsets[i + 1]

or an array `[E]` or `[captions, E]` of each id, under its name. Embeddings in a .safetensors file of the first kind stay on the
disk and are mapped.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...utils.errors import FileError, UserError
from ...utils.read_file import ZIP_ERRORS, open_npz, open_regular
from ..clip_list import TextColumn, read_header, read_list

ARRAYS = ("embeddings", "offsets", "ids", "id_offsets")
ID_COLUMNS = ("ytid", "youtube_id", "file_name")
_ROWS_COMPARED = 64
_MAPPED_TYPES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "U8": np.uint8}


class Captions(ABC):
    """The captions of a file.

    Attributes:
        source: the file.
        ids: the clips' ids, each once.
        offsets: id i has the captions `offsets[i]` to `offsets[i + 1]`, int64 `[ids + 1]`, at least one.
        width: width E of an embedding; None where captions are texts.
    """

    source: Path
    ids: TextColumn
    offsets: np.ndarray
    width: int | None

    @abstractmethod
    def take(self, rows: np.ndarray) -> np.ndarray | list[str]:
        """Captions by their numbers, int64 `[B]`: float32 `[B, E]`, or texts."""

    def digest(self) -> str:
        """A hash of the ids, of how many captions each has, and of some captions."""
        state = hashlib.sha256(self.ids.blob.tobytes() + self.ids.offsets.tobytes() + self.offsets.tobytes())
        rows = np.unique(np.linspace(0, self.offsets[-1] - 1, _ROWS_COMPARED).astype(np.int64))
        taken = self.take(rows)
        state.update("\n".join(taken).encode() if isinstance(taken, list) else taken.tobytes())
        return state.hexdigest()


class CaptionEmbeddings(Captions):
    """Embeddings of captions.

    Args:
        source: where they come from.
        arrays: those of ARRAYS.

    Raises:
        FileError: the arrays do not fit each other, or an id comes twice.
    """

    def __init__(self, source: Path, arrays: Mapping[str, np.ndarray]):
        self.source = source
        self._values, self.offsets, blob, id_offsets = (arrays[name] for name in ARRAYS)
        self.ids = TextColumn(blob, id_offsets)
        count = len(self.offsets) - 1
        shape, kind = self._values.shape, self._values.dtype.kind
        with _explained(source):
            if self._values.ndim != 2 or kind != "f" or 0 in shape:
                raise ValueError(f"embeddings are {self._values.dtype} {shape}, expected float16 [captions, width]")
            if count < 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self._values) or (np.diff(self.offsets) < 1).any():
                raise ValueError(f"offsets that do not fit its {len(self._values)} embeddings")
            self.ids.check("ids", count)
            _check_unique(self.ids)
        self.width = shape[1]

    def take(self, rows: np.ndarray) -> np.ndarray:
        values = np.asarray(self._values[rows], dtype=np.float32)
        if not np.isfinite(values).all():
            row = rows[np.argmin(np.isfinite(values).all(axis=1))]
            owner = self.ids[int(np.searchsorted(self.offsets, row, side="right")) - 1]
            raise FileError(f"{self.source}: NaN or infinite values in a caption of {owner}")
        return values


class CaptionTexts(Captions):
    """Captions of a CSV, as texts.

    Args:
        source: where they come from.
        owners: the id of each caption; an id's captions may be anywhere, and the same text counts once.
        texts: the captions.
    """

    width = None

    def __init__(self, source: Path, owners: pa.Array, texts: pa.Array):
        self.source = source
        ids, which = owners.dictionary_encode(), texts.dictionary_encode()
        codes = ids.indices.to_numpy().astype(np.int64)
        _, first = np.unique(codes * len(which.dictionary) + which.indices.to_numpy(), return_index=True)
        rows = np.sort(first)
        rows = rows[np.argsort(codes[rows], kind="stable")]
        self.ids = TextColumn.from_arrow(ids.dictionary)
        self.texts = TextColumn.from_arrow(texts.take(pa.array(rows)))
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(codes[rows], minlength=len(self.ids)))])

    def take(self, rows: np.ndarray) -> list[str]:
        return [self.texts[row] for row in rows.tolist()]


# ---------------------------------------------------------------- reading


def open_captions(paths: str) -> list[Captions]:
    """The captions of one or more files, separated by commas: .safetensors, .npz or .csv, all of one kind.

    Raises:
        UserError: the files hold embeddings of different widths, or texts and embeddings.
        FileNotFoundError, FileError: a file is missing or cannot be used.
    """
    files = [_open(Path(path.strip())) for path in paths.split(",") if path.strip()]
    if not files:
        raise UserError("--file_caption names no file")
    for other in files[1:]:
        if other.width != files[0].width:
            what = [f"{f.source} holds {'texts' if f.width is None else f'embeddings {f.width} wide'}" for f in (files[0], other)]
            raise UserError(f"--file_caption: {what[0]}, {what[1]}: captions of one kind and of one text encoder are expected")
    return files


def _open(path: Path) -> Captions:
    if not path.is_file():
        raise FileNotFoundError(f"--file_caption {path}: no such file (m2d captions writes one)")
    if path.suffix == ".csv":
        return read_texts(path)
    if path.suffix == ".safetensors":
        return CaptionEmbeddings(path, _whole(path, _mapped(path)))
    if path.suffix == ".npz":
        return CaptionEmbeddings(path, _whole(path, _loaded(path)))
    hint = (
        f": m2d captions --from_npy {path} --out {path.with_suffix('.safetensors')} converts it" if path.suffix == ".npy" else ""
    )
    raise FileError(f"{path}: captions are read from .safetensors, .npz and .csv{hint}")


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a .safetensors file, on the disk."""
    from safetensors import SafetensorError, safe_open

    try:
        safe_open(path, framework="np")  # checks the header, and that the file is whole
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path}: cannot be read as a .safetensors file: {error}") from error
    with open(open_regular(path), "rb") as file:
        begin = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(begin))
    arrays = {}
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        if tensor["dtype"] not in _MAPPED_TYPES:
            raise FileError(f"{path}: {name} is of type {tensor['dtype']}, expected float16 or float32")
        dtype, shape = _MAPPED_TYPES[tensor["dtype"]], tuple(tensor["shape"])
        at = 8 + begin + tensor["data_offsets"][0]
        arrays[name] = np.zeros(shape, dtype) if 0 in shape else np.memmap(path, dtype, mode="r", offset=at, shape=shape)
    return arrays


def _loaded(path: Path) -> dict[str, np.ndarray]:
    try:
        with open_npz(path) as file:
            return dict(file)
    except ZIP_ERRORS as error:
        raise FileError(f"{path}: cannot be read as a .npz of arrays: {error}") from error


def _whole(path: Path, arrays: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The arrays of ARRAYS, which a file has, or that are made of one array per id."""
    if set(ARRAYS) <= arrays.keys():
        return {name: arrays[name] if name == "embeddings" else np.array(arrays[name]) for name in ARRAYS}
    return joined(path, arrays)


def joined(source: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of ARRAYS, from an array `[E]` or `[captions, E]` of each id; embeddings become float16.

    Raises:
        FileError: there is none, or one that is no embedding, of another width than the first, or not finite.
    """
    rows, width = [], None
    for name, array in arrays.items():
        array = np.atleast_2d(array)
        width = width or array.shape[-1]
        if array.dtype.kind != "f" or array.ndim != 2 or 0 in array.shape or array.shape[1] != width:
            raise FileError(f"{source}: {name} is {array.dtype} {array.shape}, expected float16 [{width}] or [captions, {width}]")
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise FileError(f"{source}: NaN, infinite or too large values in a caption of {name}")
        rows.append(half)
    if not rows:
        raise FileError(f"{source}: there is no caption in it")
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in rows])]).astype(np.int64)
    return caption_arrays(TextColumn.of(arrays), offsets) | {"embeddings": np.concatenate(rows)}


def caption_arrays(ids: TextColumn, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of ARRAYS but the embeddings."""
    return {"offsets": offsets, "ids": ids.blob, "id_offsets": ids.offsets}


def read_texts(path: Path, columns: Sequence[str] = (), ids: str = "") -> CaptionTexts:
    """The captions of a CSV.

    Args:
        path: a CSV with a column of ids and one or more of captions; an id may come in several rows.
        columns: the columns of captions; none given: all whose names begin with `caption`.
        ids: the column of ids; none given: the first one there is of ID_COLUMNS. Of a file name, the id is the stem.

    Raises:
        FileNotFoundError: there is no such file.
        FileError: it cannot be read, a column is missing, or a row has no caption.
    """
    header = read_header(path)
    columns = list(columns) or [name for name in header if name.lower().startswith("caption")]
    owner = ids or next((name for name in ID_COLUMNS if name in header), ID_COLUMNS[-1])
    table = read_list(path, (owner,), columns)
    if not columns:
        shown = ", ".join(header)[:200]
        raise FileError(f"{path}: no column that begins with caption (its columns: {shown}): --columns names those of captions")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise FileError(f"{path}: no column {', '.join(missing)} (its columns: {', '.join(header)[:200]})")
    keys = stems(table.columns[owner]) if owner == "file_name" else table.columns[owner].to_arrow()
    texts = pa.concat_arrays([pc.utf8_trim_whitespace(table.columns[name].to_arrow()) for name in columns])
    given = pc.not_equal(texts, "")
    has_one = np.logical_or.reduce(given.to_numpy(zero_copy_only=False).reshape(len(columns), -1))
    if not has_one.all():
        raise FileError(f"{table.where(int(np.argmin(has_one)))}: no caption")
    order = np.arange(len(texts)).reshape(len(columns), -1).T.ravel()  # by row, then by column
    kept = pa.array(order[given.to_numpy(zero_copy_only=False)[order]])
    return CaptionTexts(path, pa.concat_arrays([keys] * len(columns)).take(kept), texts.take(kept))


def stems(names: TextColumn) -> pa.Array:
    """File names without folders and without the last suffix."""
    return pc.replace_substring_regex(pc.replace_substring_regex(names.to_arrow(), r"^.*[/\\]", ""), r"(.)\.[^.]*$", r"\1")


def _check_unique(ids: TextColumn) -> None:
    counts = pc.value_counts(ids.to_arrow())
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        raise ValueError(f"{len(repeated)} ids are repeated, such as {repeated[0]['values']}")


@contextmanager
def _explained(source: Path) -> Iterator[None]:
    """Errors of a block are raised as FileError, with the file named."""
    try:
        yield
    except (ValueError, pa.ArrowException) as error:
        raise FileError(f"{source}: {error}") from error
