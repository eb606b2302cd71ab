"""Sounds to convert."""

from pathlib import Path

import pytest
from audio_files import write


@pytest.fixture
def src(tmp_path) -> Path:
    """A folder of three sounds, one of them in a folder below."""
    for name in ("b.wav", "a.wav", "sub/c.wav"):
        write(tmp_path / "src" / name)
    return tmp_path / "src"
