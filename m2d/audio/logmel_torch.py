"""Waveform to log-mel spectrogram with torch: nnAudio's module, and a fast one of the same values."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear, pad

from ..utils.device import float32_products
from .logmel import EPS, PRESETS, SILENCE, FrontEnd, hann_window, mel_filters

__all__ = ["EPS", "PRESETS", "SILENCE", "FrontEnd", "LogMel", "log_mel_of_frames", "nnaudio_mel", "pad_short", "to_frames"]


def nnaudio_mel(front_end: FrontEnd) -> nn.Module:
    """nnAudio's MelSpectrogram: `[B, samples]` to power `[B, n_mels, frames]`, without the logarithm.

    Its buffers (mel_basis, stft.wsin, stft.wcos, stft.window_mask) are part of fine-tuned models' state dicts.
    """
    from nnAudio.features import MelSpectrogram  # takes seconds to import, and most programs never call it

    return MelSpectrogram(
        sr=front_end.sample_rate,
        n_fft=front_end.n_fft,
        win_length=front_end.window_size,
        hop_length=front_end.hop_size,
        n_mels=front_end.n_mels,
        fmin=front_end.f_min,
        fmax=front_end.f_max,
        center=True,
        power=2,
        verbose=False,
    )


def pad_short(waveforms: torch.Tensor, front_end: FrontEnd) -> torch.Tensor:
    """Zero-pad waveforms `[..., samples]` at their end to the length that reflection takes; longer ones stay."""
    missing = front_end.min_samples - waveforms.shape[-1]
    return pad(waveforms, (0, missing)) if missing > 0 else waveforms


def to_frames(waveforms: torch.Tensor, front_end: FrontEnd) -> torch.Tensor:
    """The overlapping frames `[B, frames, n_fft]`, a view, of waveforms `[B, samples]`, reflected at both ends."""
    half = front_end.n_fft // 2
    reflected = pad(pad_short(waveforms, front_end), (half, half), mode="reflect")
    return reflected.unfold(-1, front_end.n_fft, front_end.hop_size)


def log_mel_of_frames(to_spec: Any, frames: torch.Tensor) -> torch.Tensor:
    """Frames `[..., T, n_fft]`, float32, to `log(mel + EPS)` `[..., n_mels, T]` with the buffers of `nnaudio_mel`.

    The window is even and begins with 0, so the samples on either side of the frame's middle are added, or subtracted, before
    they are multiplied: two products of half the length, where nnAudio's module convolves twice. Always in true float32.

    Raises:
        ValueError: the buffers are in half precision.
    """
    if to_spec.mel_basis.dtype != torch.float32:
        raise ValueError("spectrograms need single precision: keep the runtime in float32, and use torch.autocast for less")
    half = frames.shape[-1] // 2
    left, right = frames[..., 1 : half + 1], frames[..., half:].flip(-1)
    cosines, sines = to_spec.stft.wcos[:, 0, 1 : half + 1].clone(), to_spec.stft.wsin[:, 0, 1 : half + 1]
    cosines[:, -1] /= 2  # the middle, which is on both sides
    with torch.autocast(frames.device.type, enabled=False), float32_products(frames.device):
        power = linear(left + right, cosines).square() + linear(left - right, sines).square()
        return (to_spec.mel_basis @ power.mT + EPS).log()


class LogMel(nn.Module):
    """Waveforms `[B, samples]` to log-mel spectrograms `[B, n_mels, 1 + samples // hop_size]`, float32.

    `log(mel + EPS)` with the values of `nnaudio_mel` to 1e-3, by an FFT instead of its convolution.
    Waveforms too short to be reflected are zero-padded at their end. Adds nothing to state dicts.

    Raises:
        ValueError: the input is not `[B, samples]`.
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, front_end: FrontEnd):
        super().__init__()
        self.front_end = front_end
        self.register_buffer("window", torch.from_numpy(hann_window(front_end)).float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(front_end)).float(), persistent=False)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        if waveforms.ndim != 2:
            raise ValueError(f"waveforms have the shape {list(waveforms.shape)}: expected [batch, samples]")
        # Single precision leaves noise beside a loud tone that moves quiet bands by more than 1e-3; MPS has no other.
        precise = torch.float32 if waveforms.device.type == "mps" else torch.float64
        with torch.autocast(waveforms.device.type, enabled=False), float32_products(waveforms.device):
            frames = to_frames(waveforms.float(), self.front_end)
            spectrum = torch.fft.rfft(frames * self.window.to(precise)).to(torch.complex64)
            power = torch.view_as_real(spectrum).square().sum(-1)
            return torch.log(self.filters @ power.transpose(-1, -2) + EPS)
