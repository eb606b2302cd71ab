"""End a run whose ranks wait for one that is stopped or lost, and name that rank."""

import logging
import os
import sys
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from ...utils.program import EXIT_REQUEUE

_LONGEST_INTERVAL = 2.0
_DONE = b"done"

logger = logging.getLogger("m2d")


class RankLostError(RuntimeError):
    """A rank of the run is gone, or never came."""


def ranks_text(ranks: Collection[int]) -> str:
    """`rank 3`, or `ranks 3, 5`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, sorted(ranks)))}"


class Watchdog:
    """Two threads of each rank: one counts up in the store and reads the other ranks' counts, one looks at their age.

    The second thread stays able to act while the store, which rank 0 may host, does not answer. Both keep running while the main
    thread waits in a collective or computes for a long time: only a rank none of whose threads run is missing.

    Args:
        store: a connection of its own to the run's store.
        rank, world_size: this process.
        timeout: age of a count from which its rank is missing, and this process ends.
    """

    _running: "Watchdog | None" = None

    def __init__(self, store: dist.Store, rank: int, world_size: int, timeout: timedelta):
        self.rank, self.timeout = rank, timeout
        self.interval = min(timeout.total_seconds() / 10, _LONGEST_INTERVAL)
        self._store, self._keys = store, [f"alive/{each}" for each in range(world_size)]
        self._counts: list[bytes] = [b""] * world_size
        self._seen = [time.monotonic()] * world_size
        self._ended = threading.Event()

    @classmethod
    def start(cls, store: dist.Store, rank: int, world_size: int, timeout: timedelta) -> None:
        """Watch the other ranks of this process's run."""
        cls._running = watchdog = cls(store, rank, world_size, timeout)
        for work in (watchdog._count, watchdog._watch):
            threading.Thread(target=work, name="watchdog", daemon=True).start()

    @classmethod
    def stop(cls) -> None:
        """Stop watching; the other ranks do not miss this one from now on."""
        watchdog, cls._running = cls._running, None
        if watchdog is not None:
            watchdog._ended.set()
            with suppress(RuntimeError):
                watchdog._store.set(watchdog._keys[watchdog.rank], _DONE)

    @classmethod
    def lost_ranks(cls) -> list[int]:
        """Ranks that are gone, a moment after a collective failed."""
        if cls._running is None:
            return []
        time.sleep(3 * cls._running.interval)
        return cls._running.missing(2.5 * cls._running.interval)

    def missing(self, seconds: float) -> list[int]:
        """Ranks whose count has not changed for `seconds`."""
        now = time.monotonic()
        if now - self._seen[self.rank] > seconds:  # the store itself does not answer
            return [0]
        return [each for each, seen in enumerate(self._seen) if now - seen > seconds and self._counts[each] != _DONE]

    def _count(self) -> None:
        number = 0
        with suppress(RuntimeError):  # the store is gone: the other thread will see that nothing changes
            while not self._ended.is_set():
                self._store.set(self._keys[self.rank], str(number))
                number += 1
                counts = self._store.multi_get(self._keys)
                now = time.monotonic()
                for each, count in enumerate(counts):
                    if count != self._counts[each]:
                        self._counts[each], self._seen[each] = count, now
                self._ended.wait(self.interval)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(self.interval):
            now = time.monotonic()
            if now - last > 3 * self.interval + 1:  # this process itself was stopped: nothing is known of the others
                self._seen = [now] * len(self._seen)
            last = now
            missing = self.missing(self.timeout.total_seconds())
            if missing:
                self._end(missing)

    def _end(self, missing: list[int]) -> None:
        if self.rank == min(set(range(len(self._keys))) - set(missing)):
            logger.error(
                "%s did not answer for %s (--rank_timeout): stopped, lost, or its machine cannot be reached. The run ends; "
                "--auto_resume resumes it from the last checkpoint",
                ranks_text(missing),
                self.timeout,
            )
        sys.stdout.flush()
        os._exit(EXIT_REQUEUE)
