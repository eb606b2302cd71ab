"""What all tests share: one thread, fixed seeds."""

import logging
import random

import numpy as np
import pytest
import torch
from hypothesis import settings
from small_runs import small_builders

from m2d.models import registry as models_mae

# Small tensors gain nothing from threads, and sums taken in one order give the same digits on any number of cores.
torch.set_num_threads(1)
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_logger():
    """A program under test sets up the project's logger; the next test finds it as it was."""
    logger = logging.getLogger("m2d")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def small_workplace(tmp_path, monkeypatch):
    """A working folder, and the small models in the place of the tiny ones."""
    monkeypatch.chdir(tmp_path)
    for name, builder in small_builders().items():
        monkeypatch.setitem(models_mae.BUILDERS, name, builder)
    return tmp_path
