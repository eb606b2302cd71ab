"""Waveform to log-mel spectrogram with torch: nnAudio's module, and a fast one of the same values."""

import torch
from torch import nn
from torch.nn.functional import pad

from .logmel import EPS, PRESETS, SILENCE, FrontEnd, hann_window, mel_filters

__all__ = ["EPS", "PRESETS", "SILENCE", "FrontEnd", "LogMel", "nnaudio_mel", "pad_short"]


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
    return pad(waveforms, (0, max(0, front_end.min_samples - waveforms.shape[-1])))


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
        half = self.front_end.n_fft // 2
        # Single precision leaves noise beside a loud tone that moves quiet bands by more than 1e-3; MPS has no other.
        precise = torch.float32 if waveforms.device.type == "mps" else torch.float64
        with torch.autocast(waveforms.device.type, enabled=False):
            reflected = pad(pad_short(waveforms.float(), self.front_end), (half, half), mode="reflect")
            frames = reflected.unfold(-1, self.front_end.n_fft, self.front_end.hop_size)
            spectrum = torch.fft.rfft(frames * self.window.to(precise)).to(torch.complex64)
            power = torch.view_as_real(spectrum).square().sum(-1)
            return torch.log(self.filters @ power.transpose(-1, -2) + EPS)
