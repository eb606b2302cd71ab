"""The files of a pack: a list's clips in a few large arrays, which `util/pack_lms.py` and `wav_to_lms.py --pack` write
and `pack_store` reads.

A pack is a folder:
    pack.json                   what it holds; written first
    chunk-00000.frames.npy      log-mel frames of the chunk's clips one after the other, `[frames, n_mels]`: time-major,
                                so that a crop is one contiguous piece
    chunk-00000.features.npy    M2D-S: the clips' features, `[features, E]`
    chunk-00000.index.npz       names, labels, lengths, checksums of the chunk's clips; written last: a chunk without
                                it does not exist
Chunk k holds the clips [k * chunk_clips, (k + 1) * chunk_clips) of the list, so that an interrupted run goes on with
the chunks that lack, and several machines can share them out.
"""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..clip_list import TextColumn

VERSION = 1
HEADER_BYTES = 128
DTYPES = ("float16", "float32")
MOST_CHUNKS = 256  # their files stay open
_USUAL_CHUNK = 8192


@dataclass(frozen=True)
class PackInfo:
    """What a pack holds.

    Attributes:
        list_digest: hash of the list it was made from.
        clips: length of that list (a clip that could not be converted may lack).
        chunk_clips: clips per chunk.
        dtype: float16 or float32.
        n_mels: mel bands.
        feature_width: width E of the features; 0 without.
        columns: the list's columns it has.
        made_from: of audio, how its spectrograms were computed.
    """

    list_digest: str
    clips: int
    chunk_clips: int
    dtype: str
    n_mels: int
    feature_width: int
    columns: tuple[str, ...]
    made_from: str = ""

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.clips // self.chunk_clips)

    def to_json(self) -> str:
        """The text of pack.json."""
        return json.dumps({"format": "m2d-pack", "version": VERSION, **asdict(self)}, indent=1)


def default_chunk_clips(clips: int) -> int:
    """Clips per chunk of a pack of so many clips."""
    return max(_USUAL_CHUNK, -(-clips // MOST_CHUNKS))


def info_path(pack: str | Path) -> Path:
    """Where a pack says what it holds."""
    return Path(pack) / "pack.json"


def chunk_path(pack: str | Path, chunk: int, part: str) -> Path:
    """A file of a chunk; part: frames.npy, features.npy or index.npz."""
    return Path(pack) / f"chunk-{chunk:05d}.{part}"


def read_info(pack: str | Path) -> PackInfo:
    """What a pack holds.

    Raises:
        FileNotFoundError, ValueError: there is no pack, or one of another version.
    """
    path = info_path(pack)
    if not path.is_file():
        raise FileNotFoundError(f"{pack}: no pack (a folder with a pack.json, which util/pack_lms.py writes)")
    try:
        values = json.loads(path.read_text())
        if values.pop("format") != "m2d-pack":
            raise KeyError("format")
        version = values.pop("version")
        if version != VERSION:
            raise ValueError(f"{pack}: a pack of version {version}; this program reads version {VERSION}: pack the list again")
        return PackInfo(**values | {"columns": tuple(values["columns"])})
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not what util/pack_lms.py writes ({error!r}): pack the list again") from error


def array_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The .npy header of a chunk's array, `HEADER_BYTES` long whatever the shape."""
    text = f"{{'descr': '{np.dtype(dtype).newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + f"{text:<{HEADER_BYTES - 11}}\n".encode()


def missing_chunks(pack: str | Path, info: PackInfo) -> list[int]:
    """Chunks that are not there, or not whole."""
    return [k for k in range(info.chunks) if not chunk_path(pack, k, "index.npz").is_file()]


def read_index(pack: str | Path, chunk: int) -> dict[str, np.ndarray]:
    """The arrays of a chunk's index: `lengths`, `crc`, each column as blob and offsets; of features `feature_lengths`,
    `feature_crc`, `valid`; a number per clip each.

    Raises:
        ValueError: it is damaged.
    """
    path = chunk_path(pack, chunk, "index.npz")
    try:
        with np.load(path) as index:
            return {name: index[name] for name in index.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: damaged ({error}): remove {path.name.split('.')[0]}.* and pack the list again") from error


def text_column(index: dict[str, np.ndarray], name: str) -> TextColumn:
    """A column of a chunk's index."""
    return TextColumn(index[f"{name}.blob"], index[f"{name}.offsets"])
