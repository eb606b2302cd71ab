"""A small model, its training checkpoint, and a folder of a published name."""

import pytest
import torch
from checkpoint_files import FULL, NAME, training_checkpoint

from m2d.checkpoint.weights import save_atomically
from m2d.models.registry import M2DViT


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return M2DViT(**FULL, norm_stats=(-6.5, 3.5))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / NAME
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def whole_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "checkpoint-1.pth"
    save_atomically(training_checkpoint(model), path)
    return path
