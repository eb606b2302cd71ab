"""The published system's numbers: every case of tests/reference/cases.py, which stands there unchanged."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

REFERENCE = Path(__file__).parent


def _load_cases():
    spec = importlib.util.spec_from_file_location("reference_cases", REFERENCE / "cases.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _load_cases()


@pytest.fixture(scope="module")
def expected():
    """What the published system returned: case -> name of an output -> array."""
    table = {}
    with np.load(REFERENCE / "expected.npz", allow_pickle=False) as stored:
        for full in stored.files:
            name, key = full.split("|", 1)
            table.setdefault(name, {})[key] = stored[full]
    return table


@pytest.fixture(scope="module", autouse=True)
def clean_up():
    """Several GB of fixed checkpoints go as soon as the last case is done."""
    yield
    cases.checkpoint.cache_clear()
    cases.SCRATCH.cleanup()


@pytest.mark.parametrize("name", cases.CASES)
def test_case(name, expected):
    problems = cases.compare(name, cases.run(name), expected[name])
    assert not problems, "\n".join(problems)


def test_every_recorded_case_is_run(expected):
    assert set(expected) == set(cases.CASES)


def test_a_deviation_beyond_the_tolerance_is_found(expected):
    name = "m2d.loss"
    got = {key: value.copy() for key, value in expected[name].items()}
    assert cases.compare(name, got, expected[name]) == []
    key = next(key for key, value in got.items() if value.ndim == 0)
    got[key] = got[key] * (1 + 2 * cases.TOLERANCE[name])
    assert len(cases.compare(name, got, expected[name])) == 1
    del got[key]
    assert len(cases.compare(name, got, expected[name])) == 1
