"""RuntimeM2D: from waveforms to embeddings or logits with a pre-trained or fine-tuned model."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..audio.logmel_torch import PRESETS, FrontEnd, nnaudio_mel
from ..checkpoint.hugging_face import source_of
from ..checkpoint.projectors import load_projectors
from ..checkpoint.spec import parse_sizes_by_name
from ..models.half_encoder import HalfEncoder
from ..models.transformer.kernels import kernels_run
from ..models.transformer.onednn import use_onednn_if_faster
from .clap import ClapEmbedding
from .config import Config, flag, get_backbone, given, open_checkpoint
from .pieces import Cutting
from .reconstruction import Reconstruction
from .waveforms import WaveformCheck, check_lengths, check_waveforms, frame_count, log_mel, resample

__all__ = ["Config", "RuntimeM2D", "get_backbone", "get_timestamps", "get_to_melspec", "parse_sizes_by_name"]

log = logging.getLogger("m2d")

# What is encoded, or turned into a spectrogram, at a time: a long input needs no more memory than a short one.
_TOKENS_PER_BLOCK = 1 << 13
_FRAMES_PER_BLOCK = 1 << 14
# Factor of the block size on CUDA: a large GPU needs some 30,000 tokens to be busy.
_CUDA_BLOCKS = 4


def get_to_melspec(cfg: Any) -> nn.Module:
    """nnAudio's MelSpectrogram for the sizes in cfg (sample_rate, n_fft, window_size, hop_size, n_mels, f_min, f_max)."""
    return nnaudio_mel(FrontEnd(**{name: getattr(cfg, name) for name in FrontEnd.__dataclass_fields__}))


def get_timestamps(cfg: Any, batch_audio: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Time of each step in ms by the published rule, `[B, T]`: i · duration / T.

    For waveforms `[B, samples]` and features `[B, T, …]`. Where the end of a clip was padded to a whole patch, this is a
    little earlier than the patch begins: see `RuntimeM2D.patch_times`.
    """
    step = batch_audio.shape[-1] / cfg.sample_rate * 1000 / x.shape[1]
    return (torch.arange(x.shape[1], device=x.device) * step).expand(x.shape[0], -1)


def _join(blocks: Iterator[list[torch.Tensor]], rows: int | None) -> list[torch.Tensor]:
    """Blocks of one `[B, n, D]` per layer as one `[B, rows, D]` per layer, never held twice where gradients allow that."""
    if rows is None or torch.is_grad_enabled():
        return [torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)]
    joined, end = [], 0
    for layers in blocks:
        if layers[0].shape[1] == rows:
            return [layer.contiguous() for layer in layers]
        joined = joined or [layer.new_empty(layer.shape[0], rows, layer.shape[2]) for layer in layers]
        start, end = end, end + layers[0].shape[1]
        for whole, layer in zip(joined, layers, strict=True):
            whole[:, start:end] = layer
    return joined


class RuntimeM2D(Reconstruction, ClapEmbedding, nn.Module):
    """Waveforms to embeddings: log-mel, normalisation, encoder (Niizumi et al., 2024, section III-D).

    Features are stacked by default, all frequencies of a time step in one vector: `[B, T, F·D]`. Inputs longer than the
    model's are cut into pieces of its length, each encoded alone; the end is padded to a whole patch.

    Waveforms are `[B, samples]`, floating-point, full scale ±1, at the model's rate (`cfg.sample_rate`). Calls that take
    `sample_rate` resample from that rate, on the waveforms' device.

    Args:
        cfg: settings (see Config), which receives what the runtime finds; a fresh Config if none is given. A text or path
            in its place is the weight_file: RuntimeM2D("tiny").
        weight_file: checkpoint, as `m2d.checkpoint.file.resolve` takes it, or a path of a published name ending in `random`.
        training_mask: share of patches hidden in training, by structured masking; implies flat features.
        encoder_only: leave decoder and target out.
        dur_frames: frames of the model's input, in place of the checkpoint's. A clip shorter than that is then not padded:
            frames behind its last whole patch are not encoded.
        num_classes: add a batch norm and a linear head, loaded from the checkpoint if it has one with this number of classes.
        freeze_embed: do not train the patch embedding.
        flat_features: every patch a vector of its own: `[B, F·T, D]`.

    Arguments that are given win over cfg's.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or one that cannot be used; says why and what to do.
    """

    def __init__(
        self,
        cfg: Any = None,
        weight_file: str | Path | None = None,
        training_mask: float = 0.0,
        encoder_only: bool | None = None,
        dur_frames: int | None = None,
        num_classes: int | None = None,
        freeze_embed: bool | None = None,
        flat_features: bool | None = None,
    ):
        super().__init__()
        if isinstance(cfg, str | Path):
            cfg, weight_file = None, cfg
        self.cfg: Any = Config() if cfg is None else cfg
        cfg = self.cfg
        weight_file = given(weight_file, cfg, "weight_file")
        if weight_file is None:
            raise ValueError("no weight_file: give the path of a checkpoint, or of a published name that ends in 'random'")
        dur_frames = given(dur_frames, cfg, "dur_frames")
        cfg.dur_frames = None if dur_frames is None else int(dur_frames)
        cfg.encoder_only = flag(given(encoder_only, cfg, "encoder_only"))
        cfg.freeze_embed = flag(given(freeze_embed, cfg, "freeze_embed"))
        cfg.training_mask = float(given(training_mask or None, cfg, "training_mask"))
        self.backbone, weights = open_checkpoint(cfg, weight_file, cfg.encoder_only, cfg.dur_frames)
        self._set_projectors(load_projectors(weights) if weights else None)
        head = weights.head if weights else {}
        use_onednn_if_faster(self.backbone)
        self._half_encoder: HalfEncoder | None = None
        self._choose_features(head if num_classes is not None else {}, given(flat_features, cfg, "flat_features"))
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

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None, **settings: Any) -> "RuntimeM2D":
        """A runtime of a folder or file, or of a repository of the Hugging Face Hub.

        Args:
            name: a path, or `owner/name` (which needs huggingface_hub: its environment variables set cache and token).
            revision: a branch, tag or commit of the repository.
            settings: as for the class.
        """
        return cls(weight_file=source_of(name, revision), **settings)

    def _choose_features(self, head: dict[str, torch.Tensor], flat_features: object) -> None:
        """Stacked or flat: as asked for, or as masking or a classifier needs it."""
        cfg, width = self.cfg, self.backbone.embed_dim
        head_is_flat = "head.weight" in head and head["head.weight"].shape[1] == width
        cfg.flat_features = flag(flat_features) or cfg.training_mask > 0 or head_is_flat
        cfg.feature_d = width if cfg.flat_features else width * self.backbone.grid_size()[0]

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
        # A classifier without batch norm leaves the features as they are.
        head = {"head_norm.running_var": torch.full((width,), 1 - self.head_norm.eps), **head}
        for module, prefix in ((self.head_norm, "head_norm."), (self.head, "head.")):
            own = {name.removeprefix(prefix): tensor for name, tensor in head.items() if name.startswith(prefix)}
            module.load_state_dict({**module.state_dict(), **own})

    def use_half_encoder(self, on: bool = True) -> None:
        """Encode with less work for each batch, to the same numbers, where autocast to bfloat16 is on: see `HalfEncoder`."""
        self._half_encoder = HalfEncoder(self.backbone) if on else None

    def use_fast_code(self) -> None:
        """Encode as fast as the device allows, to the same numbers but for rounding: `use_half_encoder`, and our attention."""
        self.backbone.use_short_attention(kernels_run(self.backbone.cls_token.device))
        self.use_half_encoder()

    @property
    def front_end(self) -> FrontEnd:
        """Sizes of the spectrogram."""
        return PRESETS[self.cfg.sr]

    @property
    def cutting(self) -> Cutting:
        """How long inputs are cut into pieces."""
        unit, patch = self.backbone.patch_embed.img_size[1], self.backbone.patch_size()[1]
        return Cutting(unit, patch, pads_short=self.cfg.dur_frames is None)

    def _at_once(self, block: int) -> int:
        return block * (_CUDA_BLOCKS if self.backbone.cls_token.is_cuda else 1)

    @property
    def pieces_at_once(self) -> int:
        """Pieces of the model's input length that are encoded at a time."""
        rows, columns = self.backbone.grid_size()
        return max(1, self._at_once(_TOKENS_PER_BLOCK) // (1 + rows * columns))

    # ------------------------------------------------------------------ waveforms to spectrograms

    def to_feature(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` to log-mel spectrograms `[B, 1, n_mels, 1 + samples // hop_size]`.

        Raises:
            ValueError: another shape, no samples, or NaN.
        """
        check_waveforms(audio)
        total = frame_count(audio.shape[1], self.front_end)
        step = max(1, self._at_once(_FRAMES_PER_BLOCK) // audio.shape[0])
        stretches = [self.log_mel(audio, start, min(start + step, total)) for start in range(0, total, step)]
        return stretches[0] if len(stretches) == 1 else torch.cat(stretches, dim=-1)

    def log_mel(self, audio: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """Frames start to stop of `to_feature(audio)`: `[B, 1, n_mels, stop - start]`."""
        return log_mel(self.to_spec, audio, self.front_end, start, stop)

    def normalize_batch(self, x: torch.Tensor) -> torch.Tensor:
        """`(x - mean) / std` with the statistics in cfg."""
        return (x - self.cfg.mean) / self.cfg.std

    def to_normalized_spec(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]` to normalised log-mel spectrograms `[B, 1, n_mels, frames]`."""
        return self.normalize_batch(self.to_feature(audio))

    # ------------------------------------------------------------------ spectrograms to features

    @property
    def _mask_ratio(self) -> float:
        return self.cfg.training_mask if self.training else 0.0

    def _check_per_frame(self, per_frame: bool) -> None:
        if per_frame and self.cfg.flat_features and self._mask_ratio:
            raise ValueError("features per time step need all patches: call eval(), or leave training_mask out")

    def _encode_pieces(self, x: torch.Tensor, piece: int, return_layers: bool, per_frame: bool) -> list[torch.Tensor]:
        """Features of `[B, 1, n_mels, n·piece]`: `[B, n·T, feature_d]`, one per layer, or the last alone."""
        batch, weight = x.shape[0], self.backbone.patch_embed.proj.weight
        pieces = rearrange(x.to(weight), "b c m (n t) -> (b n) c m t", t=piece)
        if self._half_encoder and not return_layers and self._half_encoder.applies():
            tokens = self._half_encoder(pieces)
        else:
            tokens = self.backbone.forward_encoder(pieces, self._mask_ratio, return_layers=return_layers, adjust_short=True)[0]
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
        """Features of an input of `frames` frames; `cut(start, stop)` returns a stretch of it, normalised."""
        self._check_per_frame(per_frame)
        pieces_at_once = max(1, self.pieces_at_once // batch)

        def blocks() -> Iterator[list[torch.Tensor]]:
            for start, stop, piece in self.cutting.groups(frames, pieces_at_once):
                x = cut(start, min(stop, frames))
                if missing := stop - start - x.shape[-1]:
                    # The end is padded after normalisation, so with the mean: what released heads were trained with.
                    x = F.pad(x, (0, missing))
                yield self._encode_pieces(x, piece, return_layers, per_frame)

        steps = self.cutting.steps(frames)
        length = steps * self.backbone.grid_size()[0] if self.cfg.flat_features and not per_frame else steps
        return _join(blocks(), None if self._mask_ratio else length)

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
        lengths = self.cutting.lengths(lms.shape[3])
        padded = F.pad(lms, (0, max(0, sum(lengths) - lms.shape[3])))
        return list(padded[..., : sum(lengths)].split(lengths, dim=-1))

    def encode(
        self,
        audio: torch.Tensor,
        average_per_time_frame: bool = False,
        sample_rate: int | None = None,
        lengths: Sequence[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Waveforms `[B, samples]` to features `[B, T, feature_d]`, as `encode_lms` gives them.

        Of a long waveform no more than a stretch is held as a spectrogram or inside the encoder at a time.

        Args:
            audio: waveforms.
            average_per_time_frame: see `encode_lms`.
            sample_rate: of the waveforms, in Hz; None: the model's.
            lengths: samples of each clip, where the batch is padded at its end. Each clip is then encoded as if it were
                alone, and zeros follow its own steps.

        Raises:
            ValueError: another shape, no samples, NaN, or lengths that do not fit.
        """
        check = WaveformCheck(audio)
        if lengths is not None:
            check.finish()
            features = self._encode_clips(audio, check_lengths(lengths, audio), average_per_time_frame, sample_rate)
            return nn.utils.rnn.pad_sequence(features, batch_first=True)
        audio = resample(audio, sample_rate, self.sample_rate)

        def cut(start: int, stop: int) -> torch.Tensor:
            return self.normalize_batch(self.log_mel(audio, start, stop))

        frames = frame_count(audio.shape[1], self.front_end)
        features = self._encode(cut, audio.shape[0], frames, False, average_per_time_frame)[0]
        check.finish()
        return features

    def _encode_clips(
        self, audio: torch.Tensor, lengths: list[int], per_frame: bool, sample_rate: int | None
    ) -> list[torch.Tensor]:
        """Features of each clip of a padded batch, `[T, feature_d]`; pieces of equal length are encoded together."""
        self._check_per_frame(per_frame)
        pieces: dict[int, list[tuple[int, int, torch.Tensor]]] = {}
        for clip, length in enumerate(lengths):
            own = resample(audio[clip : clip + 1, :length], sample_rate, self.sample_rate)
            for place, piece in enumerate(self.split_lms(self.to_normalized_spec(own))):
                pieces.setdefault(piece.shape[-1], []).append((clip, place, piece))
        encoded: list[dict[int, torch.Tensor]] = [{} for _ in lengths]
        most = self.pieces_at_once
        for frames, group in pieces.items():
            for begin in range(0, len(group), most):
                part = group[begin : begin + most]
                features = self._encode_pieces(torch.cat([x for _, _, x in part]), frames, False, per_frame)[0]
                for (clip, place, _), values in zip(part, features, strict=True):
                    encoded[clip][place] = values
        return [torch.cat([parts[place] for place in sorted(parts)]) for parts in encoded]

    def _clip_means(self, audio: torch.Tensor, lengths: Sequence[int] | torch.Tensor, sample_rate: int | None) -> torch.Tensor:
        """Mean over time of each clip of a padded batch: `[B, feature_d]`."""
        check_waveforms(audio)
        clips = self._encode_clips(audio, check_lengths(lengths, audio), False, sample_rate)
        return torch.stack([features.mean(dim=0) for features in clips])

    def forward(
        self,
        audio: torch.Tensor,
        average_per_time_frame: bool = False,
        sample_rate: int | None = None,
        lengths: Sequence[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Waveforms `[B, samples]` to features (see `encode`), or with `num_classes` to logits `[B, classes]`."""
        if self.num_classes is None:
            return self.encode(audio, average_per_time_frame, sample_rate, lengths)
        return self.classify(self.get_scene_embeddings(audio, sample_rate, lengths))

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """Features averaged over some time `[N, feature_d]` to logits `[N, classes]`."""
        if self.num_classes is None:
            raise ValueError("logits need a classifier: give num_classes to RuntimeM2D")
        return self.head(self.head_norm(features))

    def get_scene_embeddings(
        self, audio: torch.Tensor, sample_rate: int | None = None, lengths: Sequence[int] | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Waveforms `[B, samples]` to one vector a clip, the mean over time: `[B, feature_d]`. Arguments as in `encode`."""
        if lengths is not None:
            return self._clip_means(audio, lengths, sample_rate)
        return self.encode(audio, sample_rate=sample_rate).mean(dim=1)

    def get_timestamp_embeddings(self, audio: torch.Tensor, sample_rate: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms `[B, samples]` to features per time step `[B, T, feature_d]` and their times in ms `[B, T]`.

        The times follow the published rule, i · duration / T. `patch_times` gives when each step's patches begin.
        """
        check_waveforms(audio)
        audio = resample(audio, sample_rate, self.sample_rate)
        features = self.encode(audio, average_per_time_frame=True)
        return features, get_timestamps(self.cfg, audio, features)

    def patch_times(self, samples: int) -> torch.Tensor:
        """When the patches of each time step begin, in ms `[T]`, for a waveform of `samples` samples at the model's rate."""
        cutting = self.cutting
        starts = [cutting.step_start(step) for step in range(cutting.steps(frame_count(samples, self.front_end)))]
        return torch.tensor(starts, dtype=torch.float64) * (self.front_end.hop_size * 1000 / self.sample_rate)

    def forward_frames(self, audio: torch.Tensor, sample_rate: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms `[B, samples]` to logits per time step `[B, T, classes]` and their times in ms `[B, T]`."""
        features, times = self.get_timestamp_embeddings(audio, sample_rate)
        return self.classify(features.flatten(0, 1)).unflatten(0, times.shape), times
