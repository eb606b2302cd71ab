"""The published names of the converter's front end, for other programs that import them."""

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from .logmel import PRESETS, FrontEnd, NumpyLogMel

if TYPE_CHECKING:
    import torch


class FFT_parameters:
    """The sizes of the 16-kHz front end, as attributes that may be changed."""

    sample_rate = PRESETS["16k"].sample_rate
    window_size = PRESETS["16k"].window_size
    n_fft = PRESETS["16k"].n_fft
    hop_size = PRESETS["16k"].hop_size
    n_mels = PRESETS["16k"].n_mels
    f_min = PRESETS["16k"].f_min
    f_max = PRESETS["16k"].f_max


class ToLogMelSpec:
    """Waveform `[samples]` to log-mel spectrogram, a float32 tensor `[1, n_mels, frames]`.

    Args:
        cfg: an object with the attributes of FFT_parameters.
    """

    def __init__(self, cfg: object):
        self._log_mel = NumpyLogMel(FrontEnd(**{size.name: getattr(cfg, size.name) for size in fields(FrontEnd)}))

    def __call__(self, waveform: np.ndarray) -> "torch.Tensor":
        import torch

        if np.ndim(waveform) != 1:
            raise ValueError(f"the waveform has the shape {list(np.shape(waveform))}: expected [samples]")
        return torch.from_numpy(self._log_mel(waveform))[None]
