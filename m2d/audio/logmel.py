"""Log-mel spectrograms in NumPy, and the presets.

Must not import torch: the converter starts its workers in half a second instead of three.
`logmel_torch` has the same computation for tensors.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy.fft import rfft
from scipy.sparse import csr_matrix

EPS = float(np.finfo(np.float32).eps)
SILENCE = float(np.log(EPS))

# A block of frames and its spectrum stay in the second-level cache, which doubles the speed on long clips.
_FRAMES_PER_BLOCK = 128
# Rounding in single precision leaves noise in proportion to a frame's power, which moves the logarithm of a weak band.
# Measured over tones, chirps and DC beside silence: by 5e-4 where the band has this share of the frame's power.
_MASKED_BELOW = 3e-10


@dataclass(frozen=True)
class FrontEnd:
    """Sizes of a log-mel front end: rates and frequencies in Hz, the rest in samples."""

    sample_rate: int = 16000
    n_fft: int = 400
    window_size: int = 400
    hop_size: int = 160
    n_mels: int = 80
    f_min: float = 50
    f_max: float = 8000

    @property
    def min_samples(self) -> int:
        """The shortest waveform that can be reflected by half a window at both ends."""
        return self.n_fft // 2 + 1


PRESETS = {
    "16k": FrontEnd(),
    "32k": FrontEnd(sample_rate=32000, n_fft=800, window_size=800, hop_size=320, f_max=16000),
}


def hann_window(front_end: FrontEnd) -> np.ndarray:
    """Periodic Hann window, centred in the n_fft samples: float64 `[n_fft]`."""
    size = front_end.window_size
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    before = (front_end.n_fft - size) // 2
    return np.pad(window, (before, front_end.n_fft - size - before))


def _hz_to_mel(hz: np.ndarray) -> np.ndarray:
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


def band_edges(front_end: FrontEnd) -> np.ndarray:
    """Edges of the mel bands in Hz, float64 `[n_mels + 2]`: band i begins at i, peaks at i + 1 and ends at i + 2."""
    low, high = _hz_to_mel(np.array([front_end.f_min, front_end.f_max], dtype=np.float64))
    return _mel_to_hz(np.linspace(low, high, front_end.n_mels + 2))


def mel_filters(front_end: FrontEnd) -> np.ndarray:
    """Triangular filters of unit area, equally spaced on the Slaney mel scale: float64 `[n_mels, n_fft // 2 + 1]`.

    The scale is linear up to 1 kHz and logarithmic above (Slaney, Auditory Toolbox, 1998).
    """
    edges = band_edges(front_end)[:, None]
    bins = np.arange(front_end.n_fft // 2 + 1) * (front_end.sample_rate / front_end.n_fft)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (edges[2:] - edges[:-2])


class NumpyLogMel:
    """Waveform `[samples]` to log-mel spectrogram `[n_mels, 1 + samples // hop_size]`, both float32.

    `log(mel + EPS)` of the power spectrogram with centred frames and reflected ends, as nnAudio's MelSpectrogram
    gives it. A waveform shorter than `front_end.min_samples` is zero-padded at its end to that length.
    """

    def __init__(self, front_end: FrontEnd):
        self.front_end = front_end
        self._window = hann_window(front_end)
        self._window_single = self._window.astype(np.float32)
        # Each frequency bin lies in two filters at most: a sparse product does a thirtieth of a dense one's work,
        # in one thread. The last row, of ones, sums each frame's power.
        filters = mel_filters(front_end)
        self._filters = csr_matrix(np.vstack([filters, np.ones_like(filters[:1])]).astype(np.float32))

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        n_fft, hop = self.front_end.n_fft, self.front_end.hop_size
        waveform = np.asarray(waveform, dtype=np.float32)
        if len(waveform) < self.front_end.min_samples:
            waveform = np.pad(waveform, (0, self.front_end.min_samples - len(waveform)))
        reflected = np.pad(waveform, n_fft // 2, mode="reflect")
        frames = sliding_window_view(reflected, n_fft)[::hop]
        lms = np.empty((self.front_end.n_mels, len(frames)), dtype=np.float32)
        precise = False
        for begin in range(0, len(frames), _FRAMES_PER_BLOCK):
            block = slice(begin, begin + _FRAMES_PER_BLOCK)
            mel, masked = self._mel(frames[block], precise)
            np.log(mel, out=lms[:, block])
            # Resampled audio has empty top bands: most of its frames are masked, and the rest of the clip is alike.
            precise = masked > 0.3 * _FRAMES_PER_BLOCK
        return lms

    def _mel(self, frames: np.ndarray, precise: bool) -> tuple[np.ndarray, int]:
        """Mel power + EPS `[n_mels, frames]`, and the number of frames with masked bands.

        In single precision except for these frames; in double precision if asked for.
        """
        bands = self._bands(frames * (self._window if precise else self._window_single))
        masked = np.flatnonzero(bands[:-1].min(axis=0) < _MASKED_BELOW * bands[-1])
        if not precise and len(masked):
            bands[:, masked] = self._bands(frames[masked] * self._window)
        return bands[:-1], len(masked)

    def _bands(self, windowed: np.ndarray) -> np.ndarray:
        spectrum: Any = rfft(windowed)
        power = spectrum.real**2
        power += spectrum.imag**2
        bands = self._filters @ power.T.astype(np.float32, order="C")
        bands += EPS
        return bands
