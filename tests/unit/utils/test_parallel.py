"""Work ahead in a pool, in order; progress without a terminal."""

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2d.utils.parallel import Progress, map_ahead


@given(st.integers(0, 30), st.integers(1, 8), st.integers(1, 4))
def test_results_come_in_order_and_no_more_than_so_many_wait(count, ahead, threads):
    taken = []

    def items():
        for i in range(count):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(threads) as pool:
        for i, result in enumerate(map_ahead(pool, lambda i: i * i, items(), ahead)):
            assert result == i * i and len(taken) <= i + ahead + 1
    assert len(taken) == count


def test_work_continues_while_a_result_is_used():
    read, lock = [], threading.Lock()

    def work(item):
        with lock:
            read.append(item)
        return item

    with ThreadPoolExecutor(2) as pool:
        results = map_ahead(pool, work, range(100), ahead=8)
        first = next(results)
        deadline = time.monotonic() + 5
        while len(read) < 9 and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.05)
        assert first == 0 and sorted(read) == list(range(9))
        assert list(results) == list(range(1, 100))


def test_an_error_comes_in_its_turn_and_cancels_what_waits():
    release, started = threading.Event(), []

    def work(i):
        started.append(i)
        if i == 1:
            raise ValueError("item 1")
        if i > 1:
            release.wait(10)
        return i

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, work, range(100), ahead=10)
        assert next(results) == 0
        with pytest.raises(ValueError, match="item 1"):
            next(results)
        release.set()
    assert len(started) <= 4


def test_closing_cancels_what_waits():
    release, started = threading.Event(), []

    def work(i):
        started.append(i)
        if i:
            release.wait(10)

    with ThreadPoolExecutor(1) as pool:
        results = map_ahead(pool, work, range(100), ahead=10)
        next(results)
        results.close()
        release.set()
    assert len(started) <= 2


def test_progress_is_a_line_now_and_then_without_a_terminal(caplog):
    caplog.set_level(logging.INFO, "m2d")
    with Progress(10, "clip", every=0) as progress:
        progress.update(0)
        progress.update(5)
    assert "5 of 10 clips" in caplog.text and "min left" in caplog.text


def test_progress_without_stderr_is_silent(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(10, "clip") as progress:
        progress.update(5)
