"""Looking at every clip of a list: what is wrong with it, how long it is, and what its values are like.

What was found so far is saved in a file beside the list, so that a check that was stopped resumes where it was.
"""

import hashlib
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntFlag
from pathlib import Path

import numpy as np

from ..audio.logmel import SILENCE
from ..utils.atomic_file import write_npz
from ..utils.errors import UserError
from ..utils.parallel import Progress, map_ahead
from .clip_list import ClipList
from .feature_store import NpzStore
from .file_store import FileStore, check_shape
from .npy import check_size, read_header

#: A clip is silent where no value rises so far above log(eps).
AUDIBLE = 1.0
#: No sound within full scale gives a larger log-mel value: a sine of amplitude 1 gives 7.4 at most, a square wave 7.9.
LOUDEST = 9.0
_CLIPS_AT_ONCE = 64
_PIECES_AHEAD = 64
_SAVE_SECONDS = 30

logger = logging.getLogger("m2d")


class Problem(IntFlag):
    """What is wrong with a clip."""

    MISSING = 1
    UNREADABLE = 2
    TRUNCATED = 4
    WRONG_SHAPE = 8
    NOT_FINITE = 16
    SILENT = 32
    SHORT = 64
    LISTED_TWICE = 128
    SAME_CONTENT = 256
    BEYOND_FULL_SCALE = 512


RECORD = np.dtype(
    [
        ("looked_at", np.uint8),
        ("problem", np.uint16),
        ("frames", np.int32),
        ("hash", np.uint64),
        ("values", np.int64),
        ("sum", np.float64),
        ("squares", np.float64),
        ("low", np.float32),
        ("high", np.float32),
    ]
)
#: A problem of a clip; `other` is the clip that it repeats.
TROUBLE = np.dtype([("clip", np.int64), ("problem", np.uint16), ("other", np.int64)])


def examine(store: FileStore, i: int, input_frames: int) -> tuple[np.ndarray, str]:
    """Clip i's RECORD, and what is wrong with it in words."""
    found = np.zeros((), RECORD)
    found["looked_at"] = 1
    try:
        _examine_into(found, store, i)
    except _Bad as bad:
        found["problem"] = bad.problem
        return found, str(bad)
    if found["high"] < SILENCE + AUDIBLE:
        found["problem"] = Problem.SILENT
        return found, f"no value above {float(found['high']):.2f}"
    if found["high"] > LOUDEST:
        found["problem"] = Problem.BEYOND_FULL_SCALE
        return found, f"a value of {float(found['high']):.2f}, {LOUDEST} is more than any sound within ±1 gives"
    if found["frames"] < input_frames:
        found["problem"] = Problem.SHORT
        return found, f"{found['frames']} frames, fewer than the {input_frames} of an input"
    return found, ""


class _Bad(Exception):
    def __init__(self, problem: Problem, message: object):
        super().__init__(str(message))
        self.problem = problem


def _examine_into(found: np.ndarray, store: FileStore, i: int) -> None:
    try:
        with open(store.path(i), "rb", buffering=0) as file:
            values = _read_npz(store, i) if isinstance(store, NpzStore) else _read_npy(file.fileno(), store)
            size = os.fstat(file.fileno()).st_size
            found["hash"] = int.from_bytes(hashlib.blake2b(os.pread(file.fileno(), size, 0), digest_size=8).digest(), "little")
    except FileNotFoundError as error:
        raise _Bad(Problem.MISSING, "no such file") from error
    except (OSError, ValueError) as error:
        raise _Bad(Problem.UNREADABLE, error) from error
    found["frames"] = values.shape[-1]
    values = values.astype(np.float64).ravel()
    with np.errstate(invalid="ignore"):  # infinities of both signs
        found["values"], found["sum"], found["squares"] = len(values), values.sum(), values @ values
    if not np.isfinite(found["sum"]):
        raise _Bad(Problem.NOT_FINITE, f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} values are NaN or infinite")
    found["low"], found["high"] = values.min(), values.max()


def _read_npy(fd: int, store: FileStore) -> np.ndarray:
    header = read_header(fd)
    try:
        check_shape(header, store.n_mels)
    except ValueError as error:
        raise _Bad(Problem.WRONG_SHAPE, error) from error
    try:
        check_size(fd, header)
    except ValueError as error:
        raise _Bad(Problem.TRUNCATED, error) from error
    content = os.pread(fd, header.nbytes, header.offset)
    return np.frombuffer(content, header.dtype).reshape(header.shape)


def _read_npz(store: NpzStore, i: int) -> np.ndarray:
    try:
        lms, features, _ = store.read_whole(i)
    except ValueError as error:
        raise _Bad(Problem.WRONG_SHAPE if "expected" in str(error) else Problem.UNREADABLE, error) from error
    if not np.isfinite(features).all():
        raise _Bad(Problem.NOT_FINITE, "NaN or infinite values in arr_1")
    return lms


class CheckState:
    """The records of a list's clips, saved now and then beside the list until the check is done.

    Args:
        path: the file (.npz).
        identity: a text that says what is checked; records of something else are dropped.
        count: clips in the list.

    Raises:
        UserError: the file exists, and no check wrote it.
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, identity: str, count: int):
        self._path, self._identity = path, identity
        saved = _read_state(path) if os.path.lexists(path) else None
        if saved is not None and saved[0] == identity and saved[1].shape == (count,):
            self.records = saved[1]
            logger.info("resuming: %d of %d clips were looked at", int(self.records["looked_at"].sum()), count)
        else:
            self.records = np.zeros(count, RECORD)
        self.save()

    def save(self) -> None:
        """Save the records."""
        write_npz(self._path, identity=np.array(self._identity), records=self.records)
        self._saved_at = time.monotonic()

    def save_now_and_then(self) -> None:
        """Save the records where the last time is half a minute ago."""
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self.save()

    def remove(self) -> None:
        """The check is done: nothing to resume."""
        self._path.unlink(missing_ok=True)


def _read_state(path: Path) -> tuple[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as saved:
            identity, records = saved["identity"], saved["records"]
        if identity.dtype.kind != "U" or identity.shape != () or records.dtype != RECORD or records.ndim != 1:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        raise UserError(f"{path} exists, and m2d check did not write it: move it away") from None
    return str(identity), records


def look_at(store: FileStore, clips: np.ndarray, state: CheckState, input_frames: int, workers: int) -> None:
    """Fill in the records of these clips that are not there yet."""
    todo = clips[state.records["looked_at"][clips] == 0]

    def examine_some(some: np.ndarray) -> np.ndarray:
        return np.array([examine(store, int(i), input_frames)[0] for i in some], RECORD)

    try:
        with Progress(len(todo), "clip") as progress, ThreadPoolExecutor(workers) as pool:
            pieces = list(_pieces(todo))
            for piece, records in zip(pieces, map_ahead(pool, examine_some, pieces, _PIECES_AHEAD), strict=True):
                state.records[piece] = records
                state.save_now_and_then()
                progress.update(len(piece))
    finally:
        state.save()


def _pieces(clips: np.ndarray) -> Iterator[np.ndarray]:
    for begin in range(0, len(clips), _CLIPS_AT_ONCE):
        yield clips[begin : begin + _CLIPS_AT_ONCE]


def find_troubles(clips: ClipList, records: np.ndarray) -> np.ndarray:
    """All problems as TROUBLES, by clip: those of the records, names listed twice, and other files with the same bytes."""
    bad = np.flatnonzero(records["problem"])
    names = clips.names.to_arrow().dictionary_encode().indices.to_numpy()
    named_once = np.unique(names, return_index=True)[1]
    sound = (records["looked_at"] == 1) & np.isin(records["problem"], (0, Problem.SHORT))
    candidates = np.sort(named_once[sound[named_once]])
    found = [
        _troubles(bad, records["problem"][bad], bad),
        _repeats(np.arange(len(names)), names, Problem.LISTED_TWICE),
        _repeats(candidates, records["hash"][candidates], Problem.SAME_CONTENT),
    ]
    troubles = np.concatenate(found)
    return troubles[np.argsort(troubles["clip"], kind="stable")]


def _repeats(clips: np.ndarray, keys: np.ndarray, problem: Problem) -> np.ndarray:
    """TROUBLES of the clips whose key an earlier one has."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[inverse] != np.arange(len(keys)))
    return _troubles(clips[later], problem, clips[first[inverse[later]]])


def _troubles(clips: np.ndarray, problem: np.ndarray | Problem, others: np.ndarray) -> np.ndarray:
    troubles = np.empty(len(clips), TROUBLE)
    troubles["clip"], troubles["problem"], troubles["other"] = clips, problem, others
    return troubles
