"""The data of an explore page: embeddings of files as a map, with clusters, neighbours and sounds."""

import base64
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..utils.errors import FileError
from ..utils.names import counted, shown
from ..utils.read_file import ZIP_ERRORS, open_npz
from . import embedding
from .build import layout_data
from .media import sound_uri
from .page import relative_address

NEIGHBOURS = 10
EXAMPLES = 3
_COSINE_STEPS = 10_000  # cosines are kept as integers

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class Embeddings:
    """Vectors of files: names as stored, float32 `[n, width]`."""

    names: list[str]
    vectors: np.ndarray


def read_embeddings(path: Path) -> Embeddings:
    """What `m2d embed` wrote; of embeddings per frame, the mean of each file.

    Raises:
        FileNotFoundError, FileError: there is no such file, or it holds something else.
    """
    try:
        with open_npz(path) as stored:
            files, vectors = stored["files"], stored["embeddings"]
            index = stored["file_index"] if "file_index" in stored else None
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {shown(path)}") from None
    except (KeyError, *ZIP_ERRORS) as error:
        raise FileError(f"{shown(path)}: not what m2d embed writes ({error})") from error
    rows = len(files) if index is None else len(index)
    if files.dtype.kind != "U" or files.ndim != 1 or vectors.ndim != 2 or vectors.dtype.kind != "f" or len(vectors) != rows:
        raise FileError(f"{shown(path)}: {files.shape} files and embeddings of {vectors.shape}, expected a row for each")
    if len(files) < 2 or not np.isfinite(vectors).all():
        raise FileError(f"{shown(path)}: embeddings of at least two files are needed, all of them finite numbers")
    return Embeddings(files.tolist(), _per_file(path, vectors, index, len(files)))


def _per_file(path: Path, vectors: np.ndarray, index: np.ndarray | None, files: int) -> np.ndarray:
    if index is None:
        return np.ascontiguousarray(vectors, dtype=np.float32)
    if index.dtype.kind not in "iu" or index.ndim != 1 or not np.array_equal(np.unique(index), np.arange(files)):
        raise FileError(f"{shown(path)}: its file_index does not give every file a row")
    sums = np.zeros((files, vectors.shape[1]))
    np.add.at(sums, index, vectors)
    return (sums / np.bincount(index)[:, None]).astype(np.float32)


def find_sound(name: str, npz: Path, audio: Path | None) -> Path | None:
    """The file of a name: as it is, below the .npz's folder, or below `audio`."""
    bases = [Path(), npz.parent, *([audio] if audio else [])]
    return next((base / name for base in bases if (base / name).is_file()), None)


def explore_data(
    npz: Path, page: Path, found: Embeddings, clusters: int | None, audio: Path | None, most_sounds: int
) -> dict[str, Any]:
    """All that the page shows.

    Args:
        npz, page: what is read, and what is going to be written.
        found: the embeddings.
        clusters: how many; none: chosen.
        audio: a folder where the files are, if they are not where they were.
        most_sounds: include the sound of at most this many files; the page links to the others.
    """
    logger.info("%s, %d values each", counted(len(found.vectors), "file"), found.vectors.shape[1])
    components = embedding.principal(found.vectors)
    cluster = embedding.clusters(components, clusters)
    near, cosines = embedding.neighbours(found.vectors, NEIGHBOURS)
    names = _short(found.names)
    folders = embedding.folders(found.names)
    groupings = [_grouping("clusters", np.array([f"cluster {i + 1}" for i in cluster]))]
    if folders is not None:
        groupings.append(_grouping("folders", folders))
    paths = [find_sound(name, npz, audio) for name in found.names]
    return {
        "title": shown(npz.name),
        "made": f"{datetime.now():%Y-%m-%d %H:%M}",
        "version": __version__,
        "names": names,
        "width": found.vectors.shape[1],
        "layouts": [layout_data(layout) for layout in embedding.layouts(components)],
        "groupings": groupings,
        "clusters": _clusters(components.values, cluster, folders),
        "near": _packed(near, "<i4"),
        "cosines": _packed((cosines * _COSINE_STEPS).round(), "<i2"),
        "neighbours": near.shape[1],
        "sounds": _sounds(paths, page, most_sounds),
        "missing": sum(path is None for path in paths),
    }


def _short(names: Sequence[str]) -> list[str]:
    """The names without the folders that all of them have."""
    parts = [name.split("/") for name in names]
    depth = 0
    while all(len(part) > depth + 1 for part in parts) and len({part[depth] for part in parts}) == 1:
        depth += 1
    return [shown("/".join(part[depth:])) for part in parts]


def _grouping(kind: str, labels: np.ndarray) -> dict[str, Any]:
    group, groups = embedding.grouped(labels)
    return {"kind": kind, "group": group.tolist(), "groups": [shown(name) for name in groups]}


def _clusters(values: np.ndarray, cluster: np.ndarray, folders: np.ndarray | None) -> list[dict[str, Any]]:
    """Of each cluster: its size, the files that are nearest to its middle, and the folder that most of it is from."""
    found = []
    for number in range(int(cluster.max()) + 1):
        rows = np.flatnonzero(cluster == number)
        distances = np.linalg.norm(values[rows] - values[rows].mean(axis=0), axis=1)
        folder, count = Counter(folders[rows].tolist()).most_common(1)[0] if folders is not None else ("", 0)
        found.append(
            {
                "size": len(rows),
                "examples": rows[np.argsort(distances, kind="stable")[:EXAMPLES]].tolist(),
                "folder": shown(folder),
                "share": round(count / len(rows), 3),
            }
        )
    return found


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()


def _sounds(paths: Sequence[Path | None], page: Path, most: int) -> list[str | None]:
    there = sum(path is not None for path in paths)
    if there <= most:
        return [sound_uri(path) if path else None for path in paths]
    logger.info("%s: the page links to their sound; --sounds %d includes it", counted(there, "file"), there)
    return [relative_address(path, page) if path else None for path in paths]
