"""Waveforms as a runtime takes them: checked, resampled, and turned into log-mel spectrograms stretch by stretch."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch

from ..audio.logmel_torch import FrontEnd, log_mel_of_frames, to_frames
from ..utils.device import OnHost

# Kaiser-windowed sinc, 64 zero crossings: aliases and ripple below -80 dB up to 0.9 of the lower rate's band.
_RESAMPLING: dict[str, Any] = dict(
    lowpass_filter_width=64,
    rolloff=0.9475937167399596,
    resampling_method="sinc_interp_kaiser",
    beta=14.769656459379492,
)
# Values of torchaudio's filter, about: the product of both rates without their common factor.
_LARGEST_FILTER = 1 << 29
# A recording's peak may be a little beyond full scale; one of 16-bit numbers is far beyond it.
_FAR_BEYOND_FULL_SCALE = 10.0


class WaveformCheck:
    """Whether waveforms are what a runtime takes: `[batch, samples]`, floating-point, not empty and finite.

    Warns where the largest is far beyond full scale. Raises ValueError for all else; for numbers on CUDA that are not finite no
    earlier than in `finish`, so that the host need not wait for the device before it has work.
    """

    def __init__(self, audio: torch.Tensor):
        _check_shape(audio)
        self._audio, self._extremes = audio, None
        # A data-dependent branch would break a compiled graph in two. Extremes need no memory beside an hour of audio.
        if not torch.compiler.is_compiling():
            self._extremes = OnHost(torch.stack(torch.aminmax(audio.detach())))
            if not audio.is_cuda:
                self.finish()

    def finish(self) -> None:
        """Raise ValueError where a number is not finite."""
        if self._extremes is None:
            return
        peak = self._extremes.get()[0].abs().max()
        if not peak.isfinite():
            rows = (~self._audio.isfinite()).any(dim=1).nonzero().flatten().tolist()
            raise ValueError(f"the audio holds NaN or infinity in clip {', '.join(map(str, rows))} of the batch")
        if peak > _FAR_BEYOND_FULL_SCALE:
            warnings.warn("the audio is far beyond full scale, which is ±1: divide 16-bit samples by 32768", stacklevel=2)


def check_waveforms(audio: torch.Tensor) -> None:
    """Raise ValueError unless audio is `[batch, samples]`, floating-point, not empty and finite."""
    WaveformCheck(audio).finish()


def _check_shape(audio: torch.Tensor) -> None:
    if not isinstance(audio, torch.Tensor) or audio.ndim != 2 or not audio.is_floating_point():
        got = f"a {audio.dtype} tensor {list(audio.shape)}" if isinstance(audio, torch.Tensor) else f"a {type(audio).__name__}"
        raise ValueError(f"audio is a float tensor [batch, samples] with full scale ±1; this is {got}")
    if 0 in audio.shape:
        raise ValueError(f"the audio is empty: {list(audio.shape)}")


def check_lengths(lengths: Iterable[int] | torch.Tensor, audio: torch.Tensor) -> list[int]:
    """The samples of each clip of a padded batch `[batch, samples]`; raises ValueError for lengths that do not fit it."""
    given = [float(length) for length in lengths]
    batch, samples = audio.shape
    if len(given) != batch or not all(length.is_integer() and 1 <= length <= samples for length in given):
        raise ValueError(f"lengths are {batch} numbers of samples from 1 to {samples}, one per clip; these are {given}")
    return [int(length) for length in given]


def resample(audio: torch.Tensor, rate: int | None, wanted: int) -> torch.Tensor:
    """Waveforms `[..., samples]` at another sampling rate: `[..., ceil(samples * wanted / rate)]`, on their device.

    `rate` None: they are at the wanted rate already.
    """
    if rate is None or rate == wanted:
        return audio
    if isinstance(rate, str) or rate != int(rate) or rate < 1:
        raise ValueError(f"sample_rate is a whole number of Hz; this is {rate!r}")
    common = math.gcd(int(rate), wanted)
    if int(rate) // common * (wanted // common) > _LARGEST_FILTER:
        raise ValueError(
            f"from {rate} to {wanted} Hz on a device takes too large a filter: resample before, with soxr or librosa"
        )
    from torchaudio.functional import resample as convert  # takes long to import

    with torch.autocast(audio.device.type, enabled=False):
        return convert(audio.float(), int(rate), wanted, **_RESAMPLING)


def frame_count(samples: int, front_end: FrontEnd) -> int:
    """Frames of the spectrogram of a waveform of `samples` samples."""
    return 1 + max(samples, front_end.min_samples) // front_end.hop_size


def margin(front_end: FrontEnd) -> int:
    """Frames at either end of a stretch of audio that differ from those of the whole, by the reflections there."""
    return -(-front_end.n_fft // 2 // front_end.hop_size)


def log_mel(to_spec: Any, audio: torch.Tensor, front_end: FrontEnd, start: int, stop: int) -> torch.Tensor:
    """Frames start to stop of the log-mel spectrogram of `[B, samples]`: `[B, 1, n_mels, stop - start]`.

    `to_spec` is nnAudio's MelSpectrogram, for its buffers. The frames are the same as cut from the whole: the stretch of audio
    that is framed is wider by `margin` on each side.
    """
    hop, wider = front_end.hop_size, margin(front_end)
    before = min(start, wider)
    end = audio.shape[1] if stop + wider >= frame_count(audio.shape[1], front_end) else (stop + wider) * hop
    stretch = audio[:, (start - before) * hop : end].to(to_spec.mel_basis.device, torch.float32)
    frames = to_frames(stretch, front_end)[:, before : before + stop - start]
    return log_mel_of_frames(to_spec, frames)[:, None]
