"""M2D for Hugging Face's transformers: AutoModel, AutoModelForAudioClassification and AutoFeatureExtractor.

    extractor = AutoFeatureExtractor.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    inputs = extractor(clips, sampling_rate=16000, return_tensors="pt")  # a list of waveforms in ±1
    outputs = model(**inputs)
    outputs.last_hidden_state  # [B, T, D], a vector per time step
    outputs.pooler_output  # [B, D], their mean: a vector per clip

Needs torch, torchaudio, timm, einops, nnAudio and transformers (Apache License 2.0).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BatchFeature, PretrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .portable_m2d import AudioModel, Encoder


class M2DConfig(PretrainedConfig):
    """Sizes of a model.

    Args:
        model: the published name of the architecture.
        input_size: mel bands and frames of the model's input; longer clips are cut into pieces of it.
        patch_size: mel bands and frames of a patch.
        sr: "16k" or "32k".
        hidden_size: width of a token.
        num_hidden_layers: blocks of the encoder.
        norm_stats: mean and standard deviation of the log-mel values it was trained on.
        flat_features: a vector per patch, in place of one per time step that holds all its patches.
        flat_classifier: the classifier takes flat features.
    """

    model_type = "m2d"

    def __init__(
        self,
        model: str = "m2d_vit_base",
        input_size: Sequence[int] = (80, 608),
        patch_size: Sequence[int] = (16, 16),
        sr: str = "16k",
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        norm_stats: Sequence[float] = (-7.1, 4.2),
        flat_features: bool = False,
        flat_classifier: bool = False,
        **kwargs,
    ):
        self.model, self.input_size, self.patch_size, self.sr = model, list(input_size), list(patch_size), sr
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.norm_stats, self.flat_features, self.flat_classifier = list(norm_stats), flat_features, flat_classifier
        super().__init__(**kwargs)


class M2DFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms to a padded batch; the spectrograms are made in the model.

    Args:
        sampling_rate: of the waveforms, in Hz.
    """

    model_input_names = ["input_values", "attention_mask"]

    def __init__(self, feature_size: int = 1, sampling_rate: int = 16000, padding_value: float = 0.0, **kwargs):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)

    def __call__(self, raw_speech: Any, sampling_rate: int | None = None, padding: Any = True, **kwargs) -> BatchFeature:
        """Make a batch: `input_values` `[B, samples]`, and `attention_mask` with 1 where a clip has samples.

        Args:
            raw_speech: a waveform `[samples]` in ±1, or several: an array `[B, samples]`, or a list of waveforms.
            sampling_rate: theirs, which is compared with the model's.
            padding, kwargs: as `SequenceFeatureExtractor.pad` takes them (return_tensors, max_length, truncation).

        Raises:
            ValueError: no waveform, another sampling rate, more than one channel, or samples that are no floats.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(f"the model takes {self.sampling_rate} Hz, not {sampling_rate}: resample the waveforms first")
        if not len(raw_speech):
            raise ValueError("there is no waveform, or one without samples")
        one = np.ndim(raw_speech[0]) == 0
        clips = [np.asarray(clip) for clip in ([raw_speech] if one else raw_speech)]
        others = [clip.dtype for clip in clips if clip.dtype.kind != "f"]
        if others:
            raise ValueError(f"waveforms are floats with full scale ±1; there is one of {others[0]}")
        if any(clip.ndim != 1 for clip in clips):
            raise ValueError(f"waveforms are [samples], of one channel; there is one of {max(c.shape for c in clips)}")
        clips = [clip.astype(np.float32, copy=False) for clip in clips]
        return self.pad(BatchFeature({"input_values": clips}), padding=padding, return_attention_mask=True, **kwargs)


class _MelOutside:
    """The model's mel spectrogram, made when it is first used.

    It is no part of the model: its float32 constants are not among the tensors that transformers loads, casts or leaves on
    the meta device.
    """

    def __init__(self, model: "_HubModel"):
        self._model = model
        self._made: Any = None

    @property
    def mel_basis(self) -> torch.Tensor:
        """The filters, on the model's device."""
        device = self._model.backbone.cls_token.device
        if self._made is None or self._made.mel_basis.device != device:
            self._made = AudioModel._make_to_spec(self._model).to(device)
        return self._made.mel_basis

    def __call__(self, audio: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, samples]`, on the device of `mel_basis`, to mel spectrograms."""
        return self._made(audio)


class _HubModel(AudioModel):
    """The portable model of a configuration, with a head or without."""

    def __init__(self, config: M2DConfig, flat_features: bool, num_classes: int | None):
        sizes, patch = tuple(config.input_size), tuple(config.patch_size)
        encoder = Encoder(sizes, patch, config.hidden_size, config.num_hidden_layers)
        super().__init__(encoder, config.sr, config.norm_stats, flat_features, num_classes)

    def _make_to_spec(self) -> _MelOutside:
        return _MelOutside(self)

    def clips(
        self, audio: torch.Tensor, mask: torch.Tensor | None, return_layers: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Features of clips, each encoded as if it were alone.

        Args:
            audio: `[B, samples]`, padded at the end.
            mask: `[B, samples]`, 1 where a clip has samples; None: everywhere.
            return_layers: the features of every block, not of the last one alone.

        Returns:
            Features `[B, T, D]` of each layer, zeros behind a clip's own steps; and the mean of the last ones over a clip's
            own steps, `[B, D]`.
        """
        lengths = [audio.shape[1]] * len(audio) if mask is None else mask.sum(dim=1).tolist()
        if len(set(lengths)) == 1:
            groups = [audio[:, : int(lengths[0])]]
        else:
            groups = [clip[None, : int(length)] for clip, length in zip(audio, lengths, strict=True)]
        encoded = [self.encode_lms(self.to_normalized_feature(group), return_layers) for group in groups]
        encoded = [layers if return_layers else [layers] for layers in encoded]
        means = torch.cat([layers[-1].mean(dim=1) for layers in encoded])
        most = max(layers[-1].shape[1] for layers in encoded)
        padded = [[F.pad(layer, (0, 0, 0, most - layer.shape[1])) for layer in layers] for layers in encoded]
        return [torch.cat(parts) for parts in zip(*padded, strict=True)], means


class M2DPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = M2DConfig
    main_input_name = "input_values"

    def _init_weights(self, module: nn.Module) -> None:
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        loaded = any(getattr(tensor, "_is_hf_initialized", False) for tensor in own)  # transformers 5.0 asks all the same
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d)) and not loaded:
            module.reset_parameters()


class M2DModel(M2DPreTrainedModel):
    """The encoder: waveforms to embeddings."""

    _keys_to_ignore_on_load_unexpected = [r"m2d\.head"]  # a fine-tuned checkpoint's classifier

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.m2d = _HubModel(config, config.flat_features, None)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Waveforms `[B, samples]` to `last_hidden_state` `[B, T, D]` and `pooler_output` `[B, D]`, its mean over time.

        Args:
            input_values, attention_mask: as the feature extractor makes them.
            output_hidden_states: also the features of every block, the last one normalised.
            return_dict: False: a tuple.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers, means = self.m2d.clips(input_values, attention_mask, wanted)
        output = BaseModelOutputWithPooling(layers[-1], means, hidden_states=tuple(layers) if wanted else None)
        return output.to_tuple() if return_dict is False else output


class M2DForAudioClassification(M2DPreTrainedModel):
    """The encoder with batch norm and a linear head: waveforms to logits."""

    def __init__(self, config: M2DConfig):
        super().__init__(config)
        self.m2d = _HubModel(config, config.flat_features or config.flat_classifier, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Waveforms `[B, samples]` to `logits` `[B, classes]`; the loss, where labels are given.

        Args:
            input_values, attention_mask: as the feature extractor makes them.
            labels: `[B]` numbers of classes; for the problem type multi_label_classification `[B, classes]` from 0 to 1.
            output_hidden_states: also the features of every block, the last one normalised.
            return_dict: False: a tuple.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        layers, means = self.m2d.clips(input_values, attention_mask, wanted)
        logits, loss = self.m2d.classify(means), None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(logits))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        output = SequenceClassifierOutput(loss, logits, hidden_states=tuple(layers) if wanted else None)
        return output.to_tuple() if return_dict is False else output
