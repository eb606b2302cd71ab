"""Changed copies of good files, for the readers' fuzz tests."""

import gc
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from memory import peak_growth, resident_mib

#: A fuzz test runs for seconds by default, the same inputs each time; for minutes, with new ones, under `-m slow`.
BUDGETS = pytest.mark.parametrize("examples", [100, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(0)])])

_NUMBERS = [0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def changed(good: bytes) -> st.SearchStrategy[bytes]:
    """A few changes of a file: bytes and numbers overwritten, parts removed, repeated or cut off."""
    places = st.integers(0, max(0, len(good) - 1))
    ends = st.one_of(st.integers(0, min(200, len(good))), st.integers(max(0, len(good) - 600), len(good)), places)
    bytes_at = st.tuples(st.just("write"), ends, st.binary(min_size=1, max_size=8))
    numbers = st.builds(
        lambda value, width: (value % 256**width).to_bytes(width, "little"),
        st.sampled_from(_NUMBERS),
        st.sampled_from([1, 2, 4, 8]),
    )
    change = st.one_of(
        bytes_at,
        st.tuples(st.just("write"), ends, numbers),
        st.tuples(st.just("remove"), ends, st.integers(1, 40)),
        st.tuples(st.just("insert"), ends, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("cut"), ends, st.just(0)),
    )
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: _apply(good, changes))


def _apply(good: bytes, changes: list[tuple]) -> bytes:
    data = bytearray(good)
    for kind, at, value in changes:
        if kind == "write":
            data[at : at + len(value)] = value
        elif kind == "remove":
            del data[at : at + value]
        elif kind == "insert":
            data[at:at] = value
        else:
            del data[at:]
    return bytes(data)


def json_values() -> st.SearchStrategy[object]:
    """Any JSON value of a few levels, with numbers that hurt."""
    numbers = st.one_of(st.sampled_from(_NUMBERS), st.integers(), st.floats(), st.sampled_from([10**30, 1e300, -1]))
    leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=8))
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )


def run_fuzz(
    inputs: st.SearchStrategy,
    use: Callable[[object], object],
    errors: tuple[type[Exception], ...],
    examples: int,
    most_mib: int = 150,
) -> None:
    """Use each input: only `errors` may come out, each in one line; none may take, or all leave behind, `most_mib` of memory."""
    gc.collect()
    count, peak, began, before = 0, 0.0, time.process_time(), resident_mib()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=examples < 1000,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def check(each: object) -> None:
        nonlocal count, peak
        count += 1
        with peak_growth() as grown:
            try:
                use(each)
            except errors as error:
                assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
        peak = max(peak, *grown)
        assert peak < most_mib

    check()
    gc.collect()
    left, rate = resident_mib() - before, count / (time.process_time() - began)
    print(f"{count} inputs, {rate:.0f} a second of CPU time, {peak:.0f} MiB more at the peak of one, {left:.0f} MiB after all")
    assert left < most_mib
