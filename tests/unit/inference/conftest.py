"""Weights and recordings that the tests of embedding and tagging share."""

import numpy as np
import pytest
import soundfile
from checkpoint_files import write_checkpoint
from recordings import melody


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A training checkpoint of random weights."""
    return write_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Files of several rates, channels, formats and lengths, and one that is no audio."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "more").mkdir()
    for rate in (8000, 16000, 44100, 48000):
        soundfile.write(folder / f"{rate}.wav", melody(2.5, rate), rate)
        stereo = np.stack([melody(2.5, rate)] * 2, axis=1)
        soundfile.write(folder / "more" / f"{rate}-stereo.flac", stereo, rate)
    soundfile.write(folder / "short.wav", melody(0.3, 16000), 16000)
    soundfile.write(folder / "long.ogg", melody(20, 16000), 16000)
    (folder / "notes.txt").write_text("no audio")
    return folder
