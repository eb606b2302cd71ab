"""The published system's numbers: every case of cases.py and clap_cases.py, which are here unchanged."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

REFERENCE = Path(__file__).parent
EXPECTED = {"cases": "expected.npz", "clap_cases": "clap_expected.npz"}


def _load_module(name):
    spec = importlib.util.spec_from_file_location(name, REFERENCE / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _load_module("cases")
#: Each file's cases. clap_cases.py takes the table of cases.py for its own, so each is copied once it is complete.
TABLES = {"cases": dict(cases.CASES)}
clap_cases = _load_module("clap_cases")
TABLES["clap_cases"] = dict(cases.CASES)
cases.CASES.update(TABLES["cases"])


def _stored(file):
    """What the published system returned: case -> name of an output -> array."""
    table = {}
    with np.load(REFERENCE / file, allow_pickle=False) as stored:
        for full in stored.files:
            name, key = full.split("|", 1)
            table.setdefault(name, {})[key] = stored[full]
    return table


@pytest.fixture(scope="module")
def expected():
    return {name: case for file in EXPECTED.values() for name, case in _stored(file).items()}


@pytest.fixture(scope="module", autouse=True)
def clean_up():
    """Several GB of fixed checkpoints go as soon as the last case is done; a worker may come back for more cases."""
    scratch = (cases.SCRATCH, clap_cases.SCRATCH)
    for folder in scratch:
        Path(folder.name).mkdir(exist_ok=True)
    yield
    cases.checkpoint.cache_clear()
    for folder in scratch:
        folder.cleanup()


@pytest.mark.parametrize("name", cases.CASES)
def test_case(name, expected):
    problems = cases.compare(name, cases.run(name), expected[name])
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("module", EXPECTED)
def test_every_recorded_case_is_run(module):
    assert set(_stored(EXPECTED[module])) == set(TABLES[module])


def test_a_deviation_beyond_the_tolerance_is_found(expected):
    name = "m2d.loss"
    got = {key: value.copy() for key, value in expected[name].items()}
    assert cases.compare(name, got, expected[name]) == []
    key = next(key for key, value in got.items() if value.ndim == 0)
    got[key] = got[key] * (1 + 2 * cases.TOLERANCE[name])
    assert len(cases.compare(name, got, expected[name])) == 1
    del got[key]
    assert len(cases.compare(name, got, expected[name])) == 1
