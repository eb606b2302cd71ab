"""RuntimeM2D: from waveforms to embeddings or logits with a pre-trained or fine-tuned model."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..audio.logmel_torch import EPS, PRESETS, FrontEnd, nnaudio_mel, pad_short
from ..checkpoint.build import block_count, is_random, loaded_backbone, random_backbone
from ..checkpoint.spec import parse_sizes_by_name
from ..checkpoint.weights import read_weights
from ..models.mae import MaskedAutoencoderViT
from ..models.onednn import use_onednn_if_faster
from ..models.vit import AudioViT
from .config import Config, flag, given

__all__ = ["Config", "RuntimeM2D", "get_backbone", "get_timestamps", "get_to_melspec", "parse_sizes_by_name"]

log = logging.getLogger("m2d")

# What is encoded, or turned into a spectrogram, at a time: a long input needs no more memory than a short one.
_TOKENS_PER_BLOCK = 1 << 13
_FRAMES_PER_BLOCK = 1 << 14


def get_to_melspec(cfg: object) -> nn.Module:
    """nnAudio's MelSpectrogram for the sizes in cfg (sample_rate, n_fft, window_size, hop_size, n_mels, f_min, f_max)."""
    return nnaudio_mel(FrontEnd(**{name: getattr(cfg, name) for name in FrontEnd.__dataclass_fields__}))


def get_backbone(
    cfg: object, weight_file: str | Path, encoder_only: bool = True, dur_frames: int | None = None
) -> tuple[AudioViT, dict[str, torch.Tensor]]:
    """The model of a checkpoint, and the tensors of its classifier (none: empty).

    Writes into cfg: weight_file, model, input_size, patch_size, sr, the front end's sizes, mean, std, decoder_depth.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that cannot be used.
    """
    if is_random(weight_file):
        head = {}
        backbone, sizes = random_backbone(weight_file, encoder_only, dur_frames)
        decoder_depth = block_count(backbone.state_dict(), "decoder_blocks")
    else:
        weights = read_weights(weight_file)
        backbone, sizes = loaded_backbone(weights, encoder_only, dur_frames), weights.spec
        decoder_depth = block_count(weights.state, "decoder_blocks")
        head = weights.head
    if sizes.sr not in PRESETS:
        raise ValueError(f"{weight_file}: a sample rate of {sizes.sr} is not known: choose from {', '.join(PRESETS)}")
    mean, std = backbone.norm_stats.tolist()
    found = dict(weight_file=str(weight_file), model=sizes.model, sr=sizes.sr, mean=mean, std=std, decoder_depth=decoder_depth)
    found.update(input_size=list(backbone.patch_embed.img_size), patch_size=list(sizes.patch_size))
    found.update(vars(PRESETS[sizes.sr]))
    for name, value in found.items():
        setattr(cfg, name, value)
    return backbone, head


def get_timestamps(cfg: object, batch_audio: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Start of each time step in ms, `[B, T]`: i · duration / T, for waveforms `[B, samples]` and features `[B, T, …]`."""
    step = batch_audio.shape[-1] / cfg.sample_rate * 1000 / x.shape[1]
    return (torch.arange(x.shape[1], device=x.device) * step).expand(x.shape[0], -1)


def _check_waveforms(audio: torch.Tensor) -> None:
    if not isinstance(audio, torch.Tensor) or audio.ndim != 2 or not audio.is_floating_point():
        got = f"a {audio.dtype} tensor {list(audio.shape)}" if isinstance(audio, torch.Tensor) else f"a {type(audio).__name__}"
        raise ValueError(f"audio is a float tensor [batch, samples] with full scale ±1; this is {got}")
    if 0 in audio.shape:
        raise ValueError(f"the audio is empty: {list(audio.shape)}")
    # A data-dependent branch would break a compiled graph in two. The sum needs no memory beside an hour of audio.
    if not torch.compiler.is_compiling() and not audio.sum().isfinite():
        rows = (~audio.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if rows:
            raise ValueError(f"the audio holds NaN or infinity in clip {', '.join(map(str, rows))} of the batch")


def _join(blocks: Iterator[list[torch.Tensor]], rows: int | None) -> list[torch.Tensor]:
    """Blocks of one `[B, n, D]` per layer as one `[B, rows, D]` per layer, never held twice where gradients allow that."""
    if rows is None or torch.is_grad_enabled():
        return [torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)]
    joined, end = [], 0
    for layers in blocks:
        joined = joined or [layer.new_empty(layer.shape[0], rows, layer.shape[2]) for layer in layers]
        start, end = end, end + layers[0].shape[1]
        for whole, layer in zip(joined, layers, strict=True):
            whole[:, start:end] = layer
    return joined


class RuntimeM2D(nn.Module):
    """Waveforms to embeddings: log-mel, normalisation, encoder (Niizumi et al., 2024, section III-D).

    Features are stacked by default, all frequencies of a time step in one vector: `[B, T, F·D]`. Inputs longer than the
    model's are cut into pieces of its length, each encoded alone; the end is padded to a whole patch.

    Args:
        cfg: settings (see Config), which receives what the runtime finds; a fresh Config if none is given.
        weight_file: checkpoint, as `m2d.checkpoint.resolve` takes it, or a path of a published name ending in `random`.
        training_mask: share of patches hidden in training, by structured masking; implies flat features.
        encoder_only: leave decoder and target out.
        dur_frames: frames of the model's input, in place of the checkpoint's.
        num_classes: add a batch norm and a linear head, loaded where the checkpoint has one of so many classes.
        freeze_embed: do not train the patch embedding.
        flat_features: every patch a vector of its own: `[B, F·T, D]`.

    Arguments that are given win over cfg's.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that cannot be used; says why and what to do.
    """

    def __init__(
        self,
        cfg: object | None = None,
        weight_file: str | Path | None = None,
        training_mask: float = 0.0,
        encoder_only: bool | None = None,
        dur_frames: int | None = None,
        num_classes: int | None = None,
        freeze_embed: bool | None = None,
        flat_features: bool | None = None,
    ):
        super().__init__()
        self.cfg = cfg = Config() if cfg is None else cfg
        weight_file = given(weight_file, cfg, "weight_file")
        if weight_file is None:
            raise ValueError("no weight_file: give the path of a checkpoint, or of a published name that ends in 'random'")
        dur_frames = given(dur_frames, cfg, "dur_frames")
        cfg.dur_frames = None if dur_frames is None else int(dur_frames)
        cfg.encoder_only = flag(given(encoder_only, cfg, "encoder_only"))
        cfg.freeze_embed = flag(given(freeze_embed, cfg, "freeze_embed"))
        cfg.training_mask = float(given(training_mask or None, cfg, "training_mask"))
        self.backbone, head = get_backbone(cfg, weight_file, cfg.encoder_only, cfg.dur_frames)
        use_onednn_if_faster(self.backbone)
        width, stacked_width = self.backbone.embed_dim, self.backbone.embed_dim * self.backbone.grid_size()[0]
        narrow_head = num_classes is not None and "head.weight" in head and head["head.weight"].shape[1] == width
        cfg.flat_features = flag(given(flat_features, cfg, "flat_features")) or cfg.training_mask > 0 or narrow_head
        cfg.feature_d = width if cfg.flat_features else stacked_width
        self.sample_rate = cfg.sample_rate
        self.to_spec = get_to_melspec(cfg)
        if cfg.freeze_embed:
            self.backbone.patch_embed.proj.requires_grad_(False)
        if cfg.training_mask > 0:
            self.backbone.set_random_structured_mask()
        self.num_classes = num_classes
        if num_classes is not None:
            self._add_head(num_classes, head)
        self.eval()

    def _add_head(self, num_classes: int, head: dict[str, torch.Tensor]) -> None:
        self.head_norm = nn.BatchNorm1d(self.cfg.feature_d, affine=False)
        self.head = nn.Linear(self.cfg.feature_d, num_classes)
        if "head.weight" not in head:
            log.warning("%s has no classifier: the one of %d classes starts at random", self.cfg.weight_file, num_classes)
            return
        classes, width = head["head.weight"].shape
        if classes != num_classes:
            wanted = (self.cfg.weight_file, classes, num_classes)
            log.warning("the classifier of %s has %d classes: one of %d starts at random", *wanted)
            return
        if width != self.cfg.feature_d:
            raise ValueError(
                f"the classifier of {self.cfg.weight_file} takes {width} features; there are {self.cfg.feature_d} "
                f"({'flat' if self.cfg.flat_features else 'stacked'} features)"
            )
        for module, prefix in ((self.head_norm, "head_norm."), (self.head, "head.")):
            own = {name.removeprefix(prefix): tensor for name, tensor in head.items() if name.startswith(prefix)}
            module.load_state_dict({**module.state_dict(), **own})

    # ------------------------------------------------------------------ waveforms to spectrograms

    def _frame_count(self, audio: torch.Tensor) -> int:
        return 1 + max(audio.shape[1], self.cfg.n_fft // 2 + 1) // self.cfg.hop_size

    def _log_mel(self, audio: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Frames start to stop of the log-mel spectrogram, `[B, 1, n_mels, stop - start]`, the same as cut from the whole.

        The spectrogram of a stretch has reflections at its ends that the whole has not, so it is made a little wider.
        """
        hop, total = self.cfg.hop_size, self._frame_count(audio)
        margin = -(-self.cfg.n_fft // 2 // hop)
        before = min(start, margin)
        begin = (start - before) * hop
        end = audio.shape[1] if stop + margin >= total else (stop + margin) * hop
        if self.to_spec.mel_basis.dtype != torch.float32:
            raise ValueError("spectrograms need single precision: keep the runtime in float32, and use torch.autocast for less")
        stretch = audio[:, begin:end].to(self.to_spec.mel_basis)
        with torch.autocast(stretch.device.type, enabled=False):
            mel = self.to_spec(pad_short(stretch, PRESETS[self.cfg.sr]))
            return (mel[:, None, :, before : before + stop - start] + EPS).log()

    def to_feature(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` of full scale ±1 to log-mel spectrograms `[B, 1, n_mels, 1 + samples // hop_size]`.

        Raises:
            ValueError: another shape, no samples, or NaN.
        """
        _check_waveforms(audio)
        total = self._frame_count(audio)
        step = max(1, _FRAMES_PER_BLOCK // audio.shape[0])
        if total <= step:
            return self._log_mel(audio, 0, total)
        return torch.cat([self._log_mel(audio, i, min(i + step, total)) for i in range(0, total, step)], dim=-1)

    def normalize_batch(self, x: torch.Tensor) -> torch.Tensor:
        """`(x - mean) / std` with the statistics in cfg."""
        return (x - self.cfg.mean) / self.cfg.std

    def to_normalized_spec(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` to normalised log-mel spectrograms `[B, 1, n_mels, frames]`."""
        return self.normalize_batch(self.to_feature(audio))

    # ------------------------------------------------------------------ spectrograms to features

    @property
    def _hidden(self) -> float:
        return self.cfg.training_mask if self.training else 0.0

    def _pieces(self, batch: int, frames: int) -> list[tuple[int, int, int]]:
        """What is encoded at a time, as (start, stop, frames of a piece); a rest shorter than a patch is left out."""
        (_, unit), (rows, columns) = self.backbone.patch_embed.img_size, self.backbone.grid_size()
        patch = self.backbone.patch_size()[1]
        together = max(1, _TOKENS_PER_BLOCK // (batch * (1 + rows * columns)))
        padded = frames + (patch - frames % unit % patch) % patch
        whole = padded // unit * unit
        pieces = [(start, min(start + unit * together, whole), unit) for start in range(0, whole, unit * together)]
        return pieces + [(whole, padded, padded - whole)] if padded - whole >= patch else pieces

    def _encode_pieces(self, x: torch.Tensor, piece: int, return_layers: bool, per_frame: bool) -> list[torch.Tensor]:
        """Features of `[B, 1, n_mels, n·piece]`: `[B, n·T, feature_d]`, one per layer, or the last alone."""
        batch, weight = x.shape[0], self.backbone.patch_embed.proj.weight
        pieces = rearrange(x.to(weight), "b c m (n t) -> (b n) c m t", t=piece)
        tokens = self.backbone.forward_encoder(pieces, self._hidden, return_layers=return_layers, adjust_short=True)[0]
        rows = self.backbone.grid_size()[0]
        features = []
        for layer in tokens if return_layers else [tokens]:
            layer = self.backbone.drop_cls_token(layer)
            if not self.cfg.flat_features:
                layer = rearrange(layer, "b (f t) d -> b t (f d)", f=rows)
            elif per_frame:
                layer = rearrange(layer, "b (f t) d -> b t f d", f=rows).mean(dim=2)
            features.append(rearrange(layer, "(b n) t d -> b (n t) d", b=batch))
        return features

    def _encode(
        self, cut: Callable[[int, int], torch.Tensor], batch: int, frames: int, return_layers: bool, per_frame: bool
    ) -> list[torch.Tensor]:
        """Features of an input of so many frames, of which `cut(start, stop)` gives a stretch, normalised."""
        if per_frame and self.cfg.flat_features and self._hidden:
            raise ValueError("features per time step need all patches: call eval(), or leave training_mask out")
        pieces = self._pieces(batch, frames)

        def blocks() -> Iterator[list[torch.Tensor]]:
            for start, stop, piece in pieces:
                x = cut(start, min(stop, frames))
                # The end is padded after normalisation, so with the mean: what released heads were trained with.
                yield self._encode_pieces(F.pad(x, (0, stop - start - x.shape[-1])), piece, return_layers, per_frame)

        rows = sum((stop - start) // piece * (piece // self.backbone.patch_size()[1]) for start, stop, piece in pieces)
        if self.cfg.flat_features and not per_frame:
            rows *= self.backbone.grid_size()[0]
        return _join(blocks(), None if self._hidden else rows)

    def encode_lms(
        self, lms: torch.Tensor, return_layers: bool = False, average_per_time_frame: bool = False
    ) -> torch.Tensor | list[torch.Tensor]:
        """Normalised log-mel spectrograms to features.

        Args:
            lms: `[B, 1, n_mels, frames]`, of any number of frames.
            return_layers: every block's output, the last one normalised.
            average_per_time_frame: flat features averaged over frequency: `[B, T, D]`. Stacked ones are per time step already.

        Returns:
            `[B, T, F·D]`, or flat `[B, F·T, D]`; with `return_layers` a list of such, one per block.
        """
        mels = self.backbone.patch_embed.img_size[0]
        if lms.ndim != 4 or tuple(lms.shape[1:3]) != (1, mels) or 0 in lms.shape:
            raise ValueError(f"log-mel spectrograms are [batch, 1, {mels}, frames]; these are {list(lms.shape)}")
        layers = self._encode(lambda i, j: lms[..., i:j], lms.shape[0], lms.shape[3], return_layers, average_per_time_frame)
        return layers if return_layers else layers[0]

    def split_lms(self, lms: torch.Tensor) -> list[torch.Tensor]:
        """The pieces of `[B, 1, n_mels, frames]` that `encode_lms` encodes, each alone, in their order.

        So that pieces of many clips can be encoded together: the outputs joined are those of the whole.
        """
        pieces = self._pieces(lms.shape[0], lms.shape[3])
        lms = F.pad(lms, (0, pieces[-1][1] - lms.shape[3]))
        return [lms[..., i : i + piece] for start, stop, piece in pieces for i in range(start, stop, piece)]

    def encode(self, audio: torch.Tensor, average_per_time_frame: bool = False) -> torch.Tensor:
        """Waveforms `[B, samples]` of full scale ±1 to features `[B, T, feature_d]`, as `encode_lms` gives them.

        Of a long waveform no more than a stretch is held as a spectrogram or inside the encoder at a time.

        Raises:
            ValueError: another shape, no samples, or NaN.
        """
        _check_waveforms(audio)

        def cut(start: int, stop: int) -> torch.Tensor:
            return self.normalize_batch(self._log_mel(audio, start, stop))

        return self._encode(cut, audio.shape[0], self._frame_count(audio), False, average_per_time_frame)[0]

    def forward(self, audio: torch.Tensor, average_per_time_frame: bool = False) -> torch.Tensor:
        """Waveforms `[B, samples]` to features (see `encode`), or with `num_classes` to logits `[B, classes]`."""
        features = self.encode(audio, average_per_time_frame)
        return features if self.num_classes is None else self.classify(features.mean(dim=1))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Features averaged over some time `[N, feature_d]` to logits `[N, classes]`."""
        if self.num_classes is None:
            raise ValueError("logits need a classifier: give num_classes to RuntimeM2D")
        return self.head(self.head_norm(features))

    def get_scene_embeddings(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` to one vector a clip, the mean over time: `[B, feature_d]`."""
        return self.encode(audio).mean(dim=1)

    def get_timestamp_embeddings(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms `[B, samples]` to features per time step `[B, T, feature_d]` and their times in ms `[B, T]`."""
        features = self.encode(audio, average_per_time_frame=True)
        return features, get_timestamps(self.cfg, audio, features)

    def forward_frames(self, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms `[B, samples]` to logits per time step `[B, T, classes]` and their times in ms `[B, T]`."""
        features, times = self.get_timestamp_embeddings(audio)
        return self.classify(features.flatten(0, 1)).unflatten(0, times.shape), times

    # ------------------------------------------------------------------ reconstruction, for MAE checkpoints

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
        """A normalised log-mel spectrogram `[…, n_mels, frames]` as a waveform, its phase guessed by Griffin and Lim's method.

        Needs librosa (the extra `lms-to-wav`).
        """
        from librosa.feature.inverse import mel_to_audio

        power = (lms.detach().cpu().float() * norm_stats[1] + norm_stats[0]).exp().numpy()
        sizes = dict(sr=sr, n_fft=n_fft, hop_length=hop_length, win_length=win_length)
        return mel_to_audio(power.reshape(-1, *power.shape[-2:])[0], fmin=self.cfg.f_min, fmax=self.cfg.f_max, **sizes)
