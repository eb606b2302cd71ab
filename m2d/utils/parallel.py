"""Work in a pool of threads or processes, and progress while it runs."""

import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("m2d")


def map_ahead(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int = 64) -> Iterator[Result]:
    """`work` of each item, in the order of the items; while one result is used, at most `ahead` more are computed or wait.

    `items` is read no further. An error of `work` is raised at its item's position. Pending work is cancelled on
    an error, and when the iterator is closed.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Progress:
    """A progress bar on a terminal; elsewhere a line in the log each half minute.

    Args:
        total: how many there are.
        unit: what is counted, in the singular.
        every: seconds between lines.
    """

    def __init__(self, total: int, unit: str, every: float = 30):
        self._bar = tqdm(total=total, unit=unit, disable=None if sys.stderr else True, smoothing=0.05)
        self._total, self._unit, self._every = total, unit, every
        self._done, self._begin = 0.0, time.monotonic()
        self._reported = self._begin

    def update(self, count: float = 1) -> None:
        """Count what is done; also a part of one."""
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._bar.disable and now - self._reported >= self._every:
            self._reported, rate = now, self._done / (now - self._begin)
            left = f"{math.ceil((self._total - self._done) / rate / 60)} min left" if rate else "the time left is not known yet"
            speed = f"{rate:.1f} a second" if rate >= 0.1 else f"{60 * rate:.1f} a minute"
            logger.info("%d of %d %ss, %s, %s", self._done, self._total, self._unit, speed, left)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
