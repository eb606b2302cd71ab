"""--skip_bad_files: the next clip of the list in the place of one that cannot be read or holds NaN."""

import logging
from collections.abc import Callable

import numpy as np

from ..utils.errors import FileError

#: So many unreadable clips in a row are no accident.
MAX_IN_A_ROW = 100

Reader = Callable[[np.ndarray, np.ndarray], object]
_told: set[str] = set()

logger = logging.getLogger("m2d")


def read_readable(read: Reader, clips: np.ndarray, u: np.ndarray, count: int, skip: bool) -> tuple[object, int]:
    """What is read of clips, and how many were passed over for it.

    Args:
        read: reads clips `[B]` at places `[B]`; what it raises says what is wrong.
        clips: the clips wanted, int64 `[B]`.
        u: where each crop starts, float64 `[B]`.
        count: clips in the list.
        skip: read the next clip of the list in the place of one that cannot be read: the same one each time.

    Raises:
        ValueError: MAX_IN_A_ROW clips one after the other cannot be read.
    """
    try:
        return read(clips, u), 0
    except (OSError, ValueError):
        if not skip:
            raise
    good, passed = clips.copy(), 0
    for b in range(len(good)):
        good[b], tried = _first_readable(read, int(good[b]), u[b : b + 1], count)
        passed += tried
    return read(good, u), passed


def _first_readable(read: Reader, clip: int, u: np.ndarray, count: int) -> tuple[int, int]:
    """The first clip from `clip` on that can be read, and how many were passed over."""
    for passed in range(MAX_IN_A_ROW):
        found = (clip + passed) % count
        try:
            read(np.array([found]), u)
            return found, passed
        except (OSError, ValueError) as error:
            last = error
            if str(error) not in _told:
                _told.add(str(error))
                logger.error("passed over (--skip_bad_files): %s", error)
    raise FileError(f"{MAX_IN_A_ROW} clips in a row cannot be read, even with --skip_bad_files. The last: {last}") from last
