"""What s3prl 0.4.18 asks of torchaudio, huggingface_hub and torch, and their later releases removed.

superb/setup_s3prl.sh installs this file as s3prl/m2d_compat.py and has s3prl import it first. It adds what is missing and
replaces nothing that works:

    torchaudio >= 2.9          set_audio_backend (no backends are left), load, info and save by soundfile where torchcodec is
                               not installed, sox_effects with the effects channels, rate and gain
    huggingface_hub >= 1.0     HfFolder and Repository, which s3prl imports and needs for uploads only
    torch >= 2.6               s3prl's own checkpoints hold an argparse.Namespace, which torch.load has to be allowed
"""

import argparse
import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import soundfile
import torch
import torchaudio


def set_audio_backend(backend: str | None) -> None:
    """Choose nothing: soundfile reads all files."""


def load(path: str, frame_offset: int = 0, num_frames: int = -1, **_: Any) -> tuple[torch.Tensor, int]:
    """A file's waveform `[channels, samples]`, float32, and its sampling rate."""
    audio, rate = soundfile.read(str(path), num_frames, frame_offset, dtype="float32", always_2d=True)
    return torch.from_numpy(np.ascontiguousarray(audio.T)), rate


def save(path: str, audio: torch.Tensor, sample_rate: int, **_: Any) -> None:
    """Write a waveform `[channels, samples]`."""
    soundfile.write(str(path), audio.cpu().T.numpy(), sample_rate)


def info(path: str, **_: Any) -> SimpleNamespace:
    """A file's num_frames, num_channels and sample_rate."""
    found = soundfile.info(str(path))
    return SimpleNamespace(num_frames=found.frames, num_channels=found.channels, sample_rate=found.samplerate)


def apply_effects_tensor(
    audio: torch.Tensor, sample_rate: int, effects: list[list[str]], channels_first: bool = True
) -> tuple[torch.Tensor, int]:
    """SoX's effects channels (1), rate and gain (dB) on a waveform `[channels, samples]`.

    Raises:
        NotImplementedError: another effect.
    """
    for name, *values in effects:
        if name == "channels" and values == ["1"]:
            audio = audio.mean(dim=0, keepdim=True)
        elif name == "rate" and len(values) == 1:
            rate = int(float(values[0]))
            audio, sample_rate = torchaudio.functional.resample(audio, sample_rate, rate), rate
        elif name == "gain" and len(values) == 1:
            audio = audio * 10 ** (float(values[0]) / 20)
        else:
            raise NotImplementedError(f"the effect {' '.join([name, *values])} needs SoX: install torchaudio 2.8 or older")
    return audio, sample_rate


def apply_effects_file(path: str, effects: list[list[str]], **_: Any) -> tuple[torch.Tensor, int]:
    """`apply_effects_tensor` of a file."""
    return apply_effects_tensor(*load(path), effects)


class _Removed:
    """A class that huggingface_hub no longer has."""

    def __init__(self, *_: Any, **__: Any):
        raise NotImplementedError("s3prl's uploads need huggingface_hub below 1.0")


def install() -> None:
    """Add what is missing."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    for name in ("HfFolder", "Repository"):
        if not hasattr(huggingface_hub, name):
            setattr(huggingface_hub, name, _Removed)
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = set_audio_backend
        if importlib.util.find_spec("torchcodec") is None:
            torchaudio.load, torchaudio.save = load, save
    if not hasattr(torchaudio, "info"):
        torchaudio.info = info
    name = "torchaudio.sox_effects"
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        module = ModuleType(name)
        module.apply_effects_tensor, module.apply_effects_file = apply_effects_tensor, apply_effects_file
        torchaudio.sox_effects = sys.modules[name] = module


install()
