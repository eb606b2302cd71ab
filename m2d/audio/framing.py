"""Audio that comes in stretches, cut so that its spectrogram has no seams. Free of torch, as is `decoder`."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .logmel import FrontEnd


@dataclass
class Segment:
    """Consecutive frames of a clip's spectrogram, as the audio that they are computed from.

    Attributes:
        audio: an array or tensor, float32 `[(frames - 1) · hop_size + n_fft]`: frame i is that of its samples from
            i · hop_size on. At the ends of the clip it is reflected already.
        frames: how many there are.
        samples: of the clip's waveform that came since the segment before.
    """

    audio: Any
    frames: int
    samples: int


def segments(stretches: Iterable[np.ndarray], front_end: FrontEnd, unit: int = 1) -> Iterator[Segment]:
    """The frames of a waveform that comes in stretches, float32 `[samples]`: those of the whole, in order.

    A waveform that comes in one stretch makes one segment; all but the last have a multiple of `unit` frames. One too short
    to be reflected is padded with zeros.
    """
    framer = _Framer(front_end, unit)
    last: np.ndarray | None = None
    for stretch in stretches:
        if last is not None and (segment := framer.add(last)):
            yield segment
        last = stretch
    yield framer.finish(np.empty(0, np.float32) if last is None else last)


class _Framer:
    """Holds the audio that is not cut into frames yet; once there is enough, with the reflection before its beginning."""

    def __init__(self, front_end: FrontEnd, unit: int):
        self._front_end, self._unit = front_end, unit
        self._half = front_end.n_fft // 2
        self._held = np.empty(0, np.float32)
        self._begun = False
        self._samples = 0

    def add(self, stretch: np.ndarray) -> Segment | None:
        """The frames that a stretch completes, which is not the last one."""
        held = self._with(stretch)
        if not self._begun and len(held) >= self._front_end.min_samples:
            self._begun, held = True, np.concatenate([held[self._half : 0 : -1], held])
        frames = self._frames(held) // self._unit * self._unit if self._begun else 0
        self._held = held[frames * self._front_end.hop_size :]
        return self._segment(held, frames) if frames else None

    def finish(self, stretch: np.ndarray) -> Segment:
        """The frames that remain, with those of the last stretch."""
        held = self._with(stretch)
        missing = 0 if self._begun else self._front_end.min_samples - len(held)
        if missing > 0:
            held = np.concatenate([held, np.zeros(missing, np.float32)])
        beginning = held[:0] if self._begun else held[self._half : 0 : -1]
        held = np.concatenate([beginning, held, held[-2 : -2 - self._half : -1]])
        return self._segment(held, self._frames(held))

    def _with(self, stretch: np.ndarray) -> np.ndarray:
        self._samples += len(stretch)
        return np.concatenate([self._held, stretch]) if len(self._held) else stretch

    def _frames(self, audio: np.ndarray) -> int:
        return max(0, (len(audio) - self._front_end.n_fft) // self._front_end.hop_size + 1)

    def _segment(self, audio: np.ndarray, frames: int) -> Segment:
        length = (frames - 1) * self._front_end.hop_size + self._front_end.n_fft
        samples, self._samples = self._samples, 0
        return Segment(audio[:length], frames, samples)
