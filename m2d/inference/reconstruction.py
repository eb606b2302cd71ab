"""What a runtime does with the decoder of an MAE checkpoint: reconstruct hidden patches, and make them audible."""

from typing import Any

import numpy as np
import torch

from ..models.mae import MaskedAutoencoderViT


class Reconstruction:
    """Methods of RuntimeM2D for MAE checkpoints."""

    backbone: Any
    cfg: Any

    def _need_decoder(self) -> None:
        if not isinstance(self.backbone, MaskedAutoencoderViT):
            raise ValueError("reconstruction needs an MAE checkpoint with its decoder, and encoder_only=False")

    @torch.no_grad()
    def reconstruct(self, lms: torch.Tensor, mask_ratio: float, start_frame: int = 0) -> tuple[torch.Tensor, ...]:
        """Hide patches and have the decoder fill them in.

        Args:
            lms: normalised log-mel `[B, 1, n_mels, frames]`; the model's input length from `start_frame` on is used.
            mask_ratio: share of hidden patches.

        Returns:
            loss; the input used, its reconstruction and the absolute error, each `[B, 1, n_mels, frames]`; the mask `[B, F, T]`.
        """
        self._need_decoder()
        unit = self.backbone.patch_embed.img_size[1]
        cropped = lms[..., start_frame : start_frame + unit]
        if cropped.shape[-1] < unit:
            there = cropped.shape[-1]
            raise ValueError(f"reconstruction needs {unit} frames from start_frame={start_frame} on; there are {there}")
        loss, recons, errormap, mask = self.backbone.forward_viz(cropped, mask_ratio)
        return loss, cropped, recons, errormap, mask

    @torch.no_grad()
    def decode_to_lms(self, latent: torch.Tensor) -> torch.Tensor:
        """All tokens of the encoder, class token first `[B, 1 + F·T, D]`, decoded to log-mel `[B, 1, n_mels, frames]`."""
        self._need_decoder()
        places = torch.arange(latent.shape[1] - 1, device=latent.device).expand(latent.shape[0], -1)
        return self.backbone.unpatchify(self.backbone.forward_decoder(latent, places))

    def lms_to_wav(
        self,
        lms: torch.Tensor,
        norm_stats: tuple[float, float],
        sr: int = 16000,
        n_fft: int = 400,
        hop_length: int = 160,
        win_length: int = 400,
    ) -> np.ndarray:
        """A normalised log-mel spectrogram `[…, n_mels, frames]` as a waveform, its phase estimated by Griffin and Lim's method.

        Needs librosa (the extra `lms-to-wav`).
        """
        from librosa.feature.inverse import mel_to_audio

        power = (lms.detach().cpu().float() * norm_stats[1] + norm_stats[0]).exp().numpy()
        sizes: dict[str, Any] = dict(sr=sr, n_fft=n_fft, hop_length=hop_length, win_length=win_length)
        return mel_to_audio(power.reshape(-1, *power.shape[-2:])[0], fmin=self.cfg.f_min, fmax=self.cfg.f_max, **sizes)
