"""The files of a pack: a list's clips in a few large arrays, which `m2d pack` and `m2d convert --pack` write.

A pack is a folder:
    pack.json                   what it holds; written first
    chunk-00000.frames.npy      log-mel frames of the chunk's clips one after the other, `[frames, n_mels]`: time-major,
                                so that a crop is one contiguous piece
    chunk-00000.features.npy    M2D-S: the clips' features, `[features, E]`
    chunk-00000.index.npz       names, labels, lengths, checksums of the chunk's clips; written last: a chunk without
                                it does not exist
Chunk k holds the clips [k * chunk_clips, (k + 1) * chunk_clips) of the list: an interrupted run continues with the
missing chunks, and several machines can share the chunks.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np

from ...utils.errors import FileError
from ...utils.read_file import read_json
from ...utils.shard import WHOLE, Shard

VERSION = 1
HEADER_BYTES = 128
DTYPES = ("float16", "float32")
MOST_CHUNKS = 256  # their files stay open
_USUAL_CHUNK = 8192
_WRITERS = "m2d pack"
_MOST_CLIPS, _WIDEST = 1 << 40, 1 << 16


class PackInfo(msgspec.Struct, frozen=True):
    """What a pack holds.

    Attributes:
        list_digest: hash of the list it was made from.
        clips: length of that list (a clip that could not be converted may be missing).
        chunk_clips: clips per chunk.
        dtype: float16 or float32.
        n_mels: mel bands.
        feature_width: width E of the features; 0 without.
        columns: the list's columns it has.
        made_from: of audio, how its spectrograms were computed.
    """

    list_digest: str
    clips: Annotated[int, msgspec.Meta(ge=0, le=_MOST_CLIPS)]
    chunk_clips: Annotated[int, msgspec.Meta(ge=1, le=_MOST_CLIPS)]
    dtype: Literal["float16", "float32"]
    n_mels: Annotated[int, msgspec.Meta(ge=1, le=_WIDEST)]
    feature_width: Annotated[int, msgspec.Meta(ge=0, le=_WIDEST)]
    columns: tuple[str, ...]
    made_from: str = ""

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.clips // self.chunk_clips)

    def clips_in(self, chunk: int) -> range:
        """Clips of the list that belong to a chunk."""
        return range(chunk * self.chunk_clips, min((chunk + 1) * self.chunk_clips, self.clips))

    def to_json(self) -> str:
        """The text of pack.json."""
        return json.dumps({"format": "m2d-pack", "version": VERSION, **msgspec.structs.asdict(self)}, indent=1)


class _Version(msgspec.Struct):
    format: Literal["m2d-pack"]
    version: int


class _PackFile(PackInfo, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What pack.json holds."""

    format: str
    version: int


def default_chunk_clips(clips: int) -> int:
    """Clips per chunk of a pack with this many clips."""
    return max(_USUAL_CHUNK, -(-clips // MOST_CHUNKS))


def info_path(pack: str | Path) -> Path:
    """Path of a pack's pack.json."""
    return Path(pack) / "pack.json"


def chunk_path(pack: str | Path, chunk: int, part: str) -> Path:
    """A file of a chunk; part: frames.npy, features.npy or index.npz."""
    return Path(pack) / f"chunk-{chunk:05d}.{part}"


def is_pack(path: str | Path) -> bool:
    """Whether a list is a pack: a folder with a pack.json."""
    return info_path(path).is_file()


def read_info(pack: str | Path) -> PackInfo:
    """What a pack holds, its values checked.

    Raises:
        FileNotFoundError: there is no pack.
        FileError: its pack.json is damaged, or of another version.
    """
    path = info_path(pack)
    if not is_pack(pack):
        raise FileNotFoundError(f"{pack}: no pack (a folder with a pack.json, which {_WRITERS} writes)")
    version = read_json(path, _Version, _WRITERS).version
    if version != VERSION:
        raise FileError(f"{pack}: a pack of version {version}; this program reads version {VERSION}: pack the list again")
    file = read_json(path, _PackFile, _WRITERS)
    info = PackInfo(*(getattr(file, name) for name in PackInfo.__struct_fields__))
    if "file_name" not in info.columns or len(set(info.columns)) < len(info.columns):
        raise FileError(f"{path}: columns {', '.join(info.columns)}, expected file_name and others, each once")
    if info.chunks > MOST_CHUNKS:
        raise FileError(f"{path}: {info.chunks} chunks ({info.clips} clips by {info.chunk_clips}), at most {MOST_CHUNKS}")
    return info


def array_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The .npy header of a chunk's array, `HEADER_BYTES` long whatever the shape."""
    text = f"{{'descr': '{np.dtype(dtype).newbyteorder('<').str}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + f"{text:<{HEADER_BYTES - 11}}\n".encode()


def missing_chunks(pack: str | Path, info: PackInfo, shard: Shard = WHOLE) -> list[int]:
    """Chunks of a shard that are not written yet."""
    return [k for k in chunks_of(info, shard) if not chunk_path(pack, k, "index.npz").is_file()]


def chunks_of(info: PackInfo, shard: Shard) -> list[int]:
    """The chunks that a shard writes."""
    return [k for k in range(info.chunks) if shard.takes(k)]
