"""What all tests share: one thread, fixed seeds."""

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import settings
from small_runs import small_builders

from m2d.models import registry as models_mae
from m2d.utils import remote

# Small tensors gain nothing from threads, and sums taken in one order give the same digits on any number of cores.
torch.set_num_threads(1)
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def seed_all() -> None:
    """The same random state, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """Fixtures that several tests share start from it too: they are made before `fixed_seeds` of the first of these."""
    if fixturedef.scope != "function":
        seed_all()


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from it."""
    seed_all()


@pytest.fixture(autouse=True)
def own_logger():
    """A program under test sets up the project's logger; the next test finds it as it was."""
    logger = logging.getLogger("m2d")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def small_workplace(tmp_path, monkeypatch):
    """A working folder, and the small models in place of the tiny ones."""
    monkeypatch.chdir(tmp_path)
    for name, builder in small_builders().items():
        monkeypatch.setitem(models_mae.BUILDERS, name, builder)
    return tmp_path


@pytest.fixture
def block_cache(tmp_path, monkeypatch) -> Iterator[Path]:
    """The folder of remote files' blocks, which are small, so that a file has several; afterwards fsspec's memory is empty."""
    monkeypatch.setenv("M2D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "BLOCK", 5000)
    monkeypatch.setattr(remote, "_WAIT_SECONDS", 0)
    yield tmp_path / "cache/blocks"
    files = fsspec.filesystem("memory")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)
