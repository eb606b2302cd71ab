"""Mean and standard deviation of a list's log-mel spectrograms: measured in a stream, cached beside the list."""

import hashlib
import logging
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from ..utils.atomic_file import write_bytes
from ..utils.cache import cache_folder
from ..utils.errors import FileError
from ..utils.read_file import read_json
from .rng import Purpose, uniform
from .store import ClipStore, check_finite, read_replacing

_CLIPS_AT_ONCE = 8  # they stay in the cache
_THREADS = 4
_CACHED_SETTINGS = 16
_KEY = re.compile("[0-9a-f]{64}")

logger = logging.getLogger("m2d")


class _Entry(msgspec.Struct, frozen=True):
    """What the cache keeps of one measurement: the result, and for a reader its settings."""

    mean: float
    std: Annotated[float, msgspec.Meta(gt=0)]
    input_frames: int
    n_files: int
    repeat: bool


def drawn_clips(store: ClipStore, n_files: int) -> np.ndarray:
    """The clips that are measured: all, or `n_files` spread over the list."""
    return store.spread(min(len(store), n_files))


def measure_stats(
    store: ClipStore, input_frames: int, n_files: int = 5000, repeat: bool = False, skip_bad: bool = False
) -> tuple[float, float]:
    """Mean and (population) standard deviation over one random crop of each of up to `n_files` clips.

    The same clips and crops whatever the run's seed. Memory does not grow with their number: moments of pieces
    are merged in float64 (Chan, Golub and LeVeque, 1983).

    Args:
        store: the clips.
        input_frames: length of a crop; shorter clips are completed as the training does it.
        n_files: read at most this many clips.
        repeat: complete shorter clips by repeating them (background noise), not by silence.
        skip_bad: take the next clip in place of one that cannot be read or holds NaN.

    Raises:
        FileError: a clip holds NaN or infinite values (named), or all values are equal.
    """
    clips = drawn_clips(store, n_files)
    u = uniform(0, 0, np.arange(len(clips)), Purpose.STATISTICS)

    def read(clips: np.ndarray, u: np.ndarray) -> tuple[int, float, float]:
        crops = store.read_crops(clips, u, input_frames, repeat)
        moments = _moments(crops)
        if not math.isfinite(moments[2]):
            check_finite(store, clips, crops)
        return moments

    def piece(begin: int) -> tuple[int, float, float]:
        here = slice(begin, begin + _CLIPS_AT_ONCE)
        return read_replacing(read, clips[here], u[here], len(store), skip_bad)[0]

    count, mean, m2 = 0, 0.0, 0.0
    with ThreadPoolExecutor(_THREADS) as pool:
        for n, piece_mean, piece_m2 in pool.map(piece, range(0, len(clips), _CLIPS_AT_ONCE)):
            delta = piece_mean - mean
            m2 += piece_m2 + delta * delta * count * n / (count + n)
            mean += delta * n / (count + n)
            count += n
    std = math.sqrt(m2 / count)
    if std == 0:
        raise FileError(f"{store.source}: all values of its {len(clips)} measured clips are {mean}: nothing to learn from")
    return float(mean), float(std)


def _moments(crops: np.ndarray) -> tuple[int, float, float]:
    """Number of values, their mean, and the sum of their squared distances from it."""
    crops = crops.astype(np.float64, order="C")  # sums in one order, whatever the store's memory order
    mean = crops.mean()
    with np.errstate(invalid="ignore"):  # infinite values: the caller finds them
        crops -= mean
    return crops.size, mean, np.square(crops, out=crops).sum()


def cached_stats(
    store: ClipStore, input_frames: int, n_files: int = 5000, repeat: bool = False, skip_bad: bool = False
) -> tuple[float, float]:
    """`measure_stats`, kept in `<list>.stats.json` beside the list; of a pack at an address, in the user's cache.

    Measured again when the list, a measured file's size or time, or a setting has changed. Where the folder cannot
    be written, or a file of another program has that name, a warning says so and nothing is kept.
    """
    path = _cache_path(store.source)
    settings = {"input_frames": input_frames, "n_files": n_files, "repeat": repeat}  # their text is part of the key
    state = f"{settings} {store.fingerprint(drawn_clips(store, n_files))}"
    key = hashlib.sha256(state.encode()).hexdigest()
    cache = _read_cache(path)
    if key in cache:
        return cache[key].mean, cache[key].std
    mean, std = measure_stats(store, input_frames, n_files, repeat, skip_bad)
    if _is_foreign(path):
        logger.warning("%s was not written by training and is left as it is: the statistics are not saved", path)
        return mean, std
    kept = dict(list(cache.items())[1 - _CACHED_SETTINGS :])
    entries = kept | {key: _Entry(mean, std, input_frames, n_files, repeat)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, msgspec.json.format(msgspec.json.encode(entries), indent=1))
    except OSError as error:
        logger.warning("%s: statistics are not kept: %s", path, error)
    return mean, std


def _cache_path(source: Path | str) -> Path:
    if isinstance(source, Path):
        return source.with_name(f"{source.name}.stats.json")
    return cache_folder() / "stats" / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.json"


def _read_cache(path: Path) -> dict[str, _Entry]:
    """The cache's entries by key; none where there is no usable file."""
    try:
        return read_json(path, dict[str, _Entry], "training")
    except (FileNotFoundError, FileError):
        return {}


def _is_foreign(path: Path) -> bool:
    """Whether a file is JSON of another program: its entries have other keys than this cache's. A truncated cache is not."""
    try:
        return not all(_KEY.fullmatch(name) for name in read_json(path, dict[str, Any], "training"))
    except (FileNotFoundError, FileError):
        return False
