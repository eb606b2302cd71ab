"""Weights, runtimes and recordings that the tests of embedding and tagging share."""

import numpy as np
import pytest
import soundfile
import torch
from checkpoint_files import write_checkpoint, write_fine_tuned
from recordings import melody

from m2d.inference.runtime import RuntimeM2D


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


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by what they are, each written once."""
    root, made = tmp_path_factory.mktemp("weights"), {}

    def get(kind="plain", **sizes):
        key = (kind, *sorted(sizes.items()))
        if key not in made:
            torch.manual_seed(1)
            folder = root / str(len(made))
            if kind == "plain":
                made[key] = write_checkpoint(folder, **sizes)
            else:
                made[key] = write_fine_tuned(folder, **sizes)
        return made[key]

    return get


@pytest.fixture(scope="module")
def runtime(files):
    return RuntimeM2D(weight_file=files())
