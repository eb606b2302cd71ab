"""What a runtime does with an M2D-CLAP checkpoint: sounds and texts in one space (Niizumi et al., 2024b and 2025)."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import nn

from ..checkpoint.projectors import Projectors
from ..checkpoint.spec import text_encoder_of_path
from ..checkpoint.weights import read_weights
from ..models.text_encoder import PUBLISHED, TextEncoder, load_text_encoder
from ..utils.errors import UserError
from .config import flag, given
from .waveforms import check_lengths, check_waveforms

_TEXTS_AT_A_TIME = 64


class ClapEmbedding:
    """Methods of RuntimeM2D for M2D-CLAP checkpoints. Similarity is the cosine: what they return is not normalised.

    Attributes:
        audio_proj, text_proj: the projectors, not trained unless `requires_grad_` asks for it; None where there are none.
        text_encoder: called as `text_encoder(texts, truncate=False)`, it returns `[B, E]`. None until it is needed: then the
            checkpoint's own is loaded; set it to use another. It is no part of the module: `to`, `train` and `state_dict` leave
            it alone.
    """

    audio_proj: Any
    text_proj: Any
    text_encoder: Callable[..., torch.Tensor] | None
    backbone: Any
    cfg: Any
    encode: Callable[..., torch.Tensor]
    _encode_clips: Callable[..., list[torch.Tensor]]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "text_encoder":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _set_projectors(self, projectors: Projectors | None) -> None:
        self.audio_proj, self.text_proj = projectors or (None, None)
        self.text_encoder = None

    @property
    def has_clap(self) -> bool:
        """Whether the checkpoint is M2D-CLAP's, with a projector."""
        return self.audio_proj is not None

    def check_clap(self) -> None:
        """Raise UserError where the checkpoint has no projector."""
        if not self.has_clap:
            raise UserError(
                f"{self.cfg.weight_file} has no projector to compare sounds with texts: an M2D-CLAP checkpoint is needed, whose "
                "name begins with m2d_clap_vit (an encoder alone, as exported, has lost it)"
            )

    # ------------------------------------------------------------------ audio

    def project_audio(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens `[B, N, D]`, in any order, without the class token, to one vector a clip `[B, D]`.

        Raises:
            UserError: the checkpoint has no projector.
            ValueError: another shape.
        """
        self.check_clap()
        width = self.backbone.embed_dim
        if tokens.ndim != 3 or tokens.shape[1] == 0 or tokens.shape[2] != width:
            raise ValueError(f"patch tokens are [batch, tokens, {width}]; these are {list(tokens.shape)}")
        return self.audio_proj(tokens)

    def clap_patches(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[B, T, F·D]` or flat `[B, F·T, D]` as patch tokens `[B, F·T, D]`."""
        return rearrange(features, "b t (f d) -> b (t f) d", d=self.backbone.embed_dim)

    def encode_clap_audio(
        self,
        audio: torch.Tensor,
        sample_rate: int | None = None,
        lengths: Sequence[int] | torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Waveforms `[B, samples]` to vectors `[B, D]`, whatever `flat_features` is. Arguments as in `encode`.

        Raises:
            UserError: the checkpoint has no projector.
            ValueError: as `encode`.
        """
        self.check_clap()
        if lengths is None:
            return self.project_audio(self.clap_patches(self.encode(audio, sample_rate=sample_rate)))
        check_waveforms(audio)
        clips = self._encode_clips(audio, check_lengths(lengths, audio), False, sample_rate)
        return torch.cat([self.project_audio(self.clap_patches(features[None])) for features in clips])

    # ------------------------------------------------------------------ text

    def load_text_encoder(
        self,
        name: str | Path | None = None,
        tokenizer: str | Path | None = None,
        pooling: str | None = None,
        trust_remote_code: bool | None = None,
    ) -> TextEncoder:
        """Load the text encoder, set `text_encoder` to it and return it. Arguments that are not given come from cfg.

        Args:
            name: a letter (A, B, N, …), a model of the Hugging Face hub or a local folder; None: the checkpoint's own, by the
                settings in the file or the letter in its name, with the weights in the file where it holds them.
            tokenizer: a local folder, or a name, where the tokenizer comes from; None: from the text encoder's.
            pooling, trust_remote_code: see `m2d.models.text_encoder.load_text_encoder`.

        Raises:
            UserError: no projector, a package is missing, no such model, or it is of another width than the checkpoint's.
        """
        self.check_clap()
        name = given(name, self.cfg, "text_encoder")
        options = dict(
            tokenizer=given(tokenizer, self.cfg, "tokenizer"),
            pooling=pooling,
            trust_remote_code=flag(given(trust_remote_code, self.cfg, "trust_remote_code")),
        )
        encoder = self._own_text_encoder(options) if name is None else load_text_encoder(str(name), **options)
        self._check_text_width(encoder.width, encoder.name)
        self.text_encoder = encoder
        return encoder

    def _own_text_encoder(self, options: dict[str, Any]) -> TextEncoder:
        """The text encoder that the checkpoint was trained with."""
        weights = read_weights(self.cfg.weight_file)
        told = {key: value for key, value in (weights.args or {}).items() if isinstance(value, str) and value}
        if "text_encoder" in told:
            options = {**options, "tokenizer": options["tokenizer"] or told.get("tokenizer")}
            options["pooling"] = options["pooling"] or told.get("text_pooling")
            return load_text_encoder(told["text_encoder"], weights.text or None, **options)
        letter = text_encoder_of_path(weights.path)
        if letter not in PUBLISHED:
            raise UserError(
                f"{weights.path}: a text encoder {letter!r} is not known ({', '.join(PUBLISHED)}): name it (text_encoder)"
            )
        return load_text_encoder(letter, weights.text or None, **options)

    def _check_text_width(self, width: int, name: str) -> None:
        layers = [layer for layer in self.text_proj.modules() if isinstance(layer, nn.Linear)]
        wanted = layers[0].in_features if layers else self.backbone.embed_dim
        if width != wanted:
            raise UserError(
                f"the text encoder {name} gives vectors of width {width}, {self.cfg.weight_file} takes {wanted}: "
                "use the text encoder that it was trained with"
            )

    @torch.no_grad()
    def encode_clap_text(self, texts: Sequence[str], truncate: bool = False) -> torch.Tensor:
        """Texts to vectors, float32 `[B, D]` on the CPU.

        Args:
            texts: a list of texts.
            truncate: leave out what a text has beyond the text encoder's length, which is an error otherwise.

        Raises:
            UserError: no projector, a text encoder that cannot be loaded, or one of another width.
            ValueError: no texts, or one that is too long.
        """
        self.check_clap()
        if isinstance(texts, str) or not len(texts):
            raise ValueError(f"a list of texts is expected, with at least one; this is {texts!r:.60}")
        encoder = self.load_text_encoder() if self.text_encoder is None else self.text_encoder
        starts = range(0, len(texts), _TEXTS_AT_A_TIME)
        vectors = torch.cat([encoder(list(texts[i : i + _TEXTS_AT_A_TIME]), truncate=truncate) for i in starts])
        self._check_text_width(vectors.shape[-1], "that is set")
        return self.text_proj(vectors.to(self.backbone.norm_stats.device).float()).float().cpu()
