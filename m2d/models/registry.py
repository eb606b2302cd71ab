"""The published names: a builder for every model.

Each builder takes `img_size`, `patch_size`, `decoder_depth`, `norm_pix_loss`, `loss_type`, `target_layers`, `loss_m2d`,
`loss_off`, `off_emb_dim`, `sem_mode` and `norm_stats`; those that do not concern a model are accepted and ignored.
`build(name, **options)` does the same for a name that a user has typed.
"""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from .clap import M2D_CLAP_ViT
from .m2d import M2D_D2ViT, M2DViT
from .m2d_x import M2D_AS_ViT, M2D_S_ViT, M2D_X_ViT
from .mae import MaskedAutoencoderViT
from .vit import AudioViT, M2DEncoderViT

OPTIONS = (
    "img_size",
    "patch_size",
    "decoder_depth",
    "norm_pix_loss",
    "loss_type",
    "target_layers",
    "loss_m2d",
    "loss_off",
    "off_emb_dim",
    "sem_mode",
    "norm_stats",
)

ENCODERS = {
    "mini": dict(embed_dim=192, depth=6, num_heads=3),
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
}
PREDICTORS = {
    "mini": dict(decoder_embed_dim=128, decoder_num_heads=4),
    "tiny": dict(decoder_embed_dim=256, decoder_num_heads=8),
    "small": dict(decoder_embed_dim=384, decoder_num_heads=6),
    "base": dict(decoder_embed_dim=512, decoder_num_heads=16),
    "large": dict(decoder_embed_dim=512, decoder_num_heads=16),
}
#: MSM-MAE's decoder, whatever depth is asked for (Niizumi et al., 2022).
MSM_DECODER = dict(decoder_embed_dim=384, decoder_depth=4, decoder_num_heads=6)

FAMILIES: dict[str, type[AudioViT]] = {
    "mae": MaskedAutoencoderViT,
    "msm_mae": MaskedAutoencoderViT,
    "m2d": M2DViT,
    "m2d_d2v": M2D_D2ViT,
    "m2d_x": M2D_X_ViT,
    "m2d_as": M2D_AS_ViT,
    "m2d_s": M2D_S_ViT,
    "m2d_clap": M2D_CLAP_ViT,
}


@cache
def _accepted(model_class: type[AudioViT]) -> frozenset[str]:
    """Keyword arguments that a model class or one of its parents takes."""
    parameters = (inspect.signature(cls.__init__).parameters for cls in model_class.__mro__ if cls is not object)
    return frozenset(name for names in parameters for name in names)


@dataclass(frozen=True)
class Builder:
    """Builds models of one class and fixed sizes.

    Attributes:
        model_class: what is built.
        sizes: the constructor's arguments, which options do not override.
        defaults: arguments that options override.
    """

    model_class: type[AudioViT]
    sizes: Mapping
    defaults: Mapping = field(default_factory=dict)

    def __call__(self, **options) -> AudioViT:
        """A model, randomly initialised.

        Raises:
            TypeError: an option that no model has.
            ValueError: an option's value that the model cannot have.
        """
        unknown = sorted(set(options) - set(OPTIONS))
        if unknown:
            raise TypeError(f"unknown model options {', '.join(unknown)}: choose from {', '.join(OPTIONS)}")
        accepted = {name: value for name, value in options.items() if name in _accepted(self.model_class)}
        return self.model_class(**{**self.defaults, **accepted, **self.sizes})


def _full(family: str, size: str) -> Builder:
    predictor = MSM_DECODER if family == "msm_mae" else PREDICTORS[size]
    return Builder(FAMILIES[family], {**ENCODERS[size], **predictor})


def _encoder(size: str) -> Builder:
    return Builder(M2DEncoderViT, ENCODERS[size])


def _image(family: str) -> Builder:
    """ViT-Base for images of three channels."""
    return Builder(FAMILIES[family], dict(_full(family, "base").sizes, patch_size=16, in_chans=3), dict(img_size=224))


mae_vit_mini = _full("mae", "mini")
mae_vit_tiny = _full("mae", "tiny")
mae_vit_small = _full("mae", "small")
mae_vit_base = _full("mae", "base")
mae_vit_large = _full("mae", "large")
msm_mae_vit_mini = _full("msm_mae", "mini")
msm_mae_vit_tiny = _full("msm_mae", "tiny")
msm_mae_vit_small = _full("msm_mae", "small")
msm_mae_vit_base = _full("msm_mae", "base")
msm_mae_vit_large = _full("msm_mae", "large")
m2d_vit_mini = _full("m2d", "mini")
m2d_vit_tiny = _full("m2d", "tiny")
m2d_vit_small = _full("m2d", "small")
m2d_vit_base = _full("m2d", "base")
m2d_vit_large = _full("m2d", "large")
m2d_d2v_vit_mini = _full("m2d_d2v", "mini")
m2d_d2v_vit_tiny = _full("m2d_d2v", "tiny")
m2d_d2v_vit_small = _full("m2d_d2v", "small")
m2d_d2v_vit_base = _full("m2d_d2v", "base")
m2d_d2v_vit_large = _full("m2d_d2v", "large")
m2d_x_vit_mini = _full("m2d_x", "mini")
m2d_x_vit_tiny = _full("m2d_x", "tiny")
m2d_x_vit_small = _full("m2d_x", "small")
m2d_x_vit_base = _full("m2d_x", "base")
m2d_x_vit_large = _full("m2d_x", "large")
m2d_as_vit_mini = _full("m2d_as", "mini")
m2d_as_vit_tiny = _full("m2d_as", "tiny")
m2d_as_vit_small = _full("m2d_as", "small")
m2d_as_vit_base = _full("m2d_as", "base")
m2d_as_vit_large = _full("m2d_as", "large")
m2d_s_vit_mini = _full("m2d_s", "mini")
m2d_s_vit_tiny = _full("m2d_s", "tiny")
m2d_s_vit_small = _full("m2d_s", "small")
m2d_s_vit_base = _full("m2d_s", "base")
m2d_s_vit_large = _full("m2d_s", "large")
m2d_clap_vit_mini = _full("m2d_clap", "mini")
m2d_clap_vit_tiny = _full("m2d_clap", "tiny")
m2d_clap_vit_small = _full("m2d_clap", "small")
m2d_clap_vit_base = _full("m2d_clap", "base")
m2d_clap_vit_large = _full("m2d_clap", "large")

mae_vit_mini_encoder_only = _encoder("mini")
mae_vit_tiny_encoder_only = _encoder("tiny")
mae_vit_small_encoder_only = _encoder("small")
mae_vit_base_encoder_only = _encoder("base")
mae_vit_large_encoder_only = _encoder("large")
msm_mae_vit_mini_encoder_only = _encoder("mini")
msm_mae_vit_tiny_encoder_only = _encoder("tiny")
msm_mae_vit_small_encoder_only = _encoder("small")
msm_mae_vit_base_encoder_only = _encoder("base")
msm_mae_vit_large_encoder_only = _encoder("large")
m2d_vit_mini_encoder_only = _encoder("mini")
m2d_vit_tiny_encoder_only = _encoder("tiny")
m2d_vit_small_encoder_only = _encoder("small")
m2d_vit_base_encoder_only = _encoder("base")
m2d_vit_large_encoder_only = _encoder("large")
m2d_d2v_vit_mini_encoder_only = _encoder("mini")
m2d_d2v_vit_tiny_encoder_only = _encoder("tiny")
m2d_d2v_vit_small_encoder_only = _encoder("small")
m2d_d2v_vit_base_encoder_only = _encoder("base")
m2d_d2v_vit_large_encoder_only = _encoder("large")
m2d_x_vit_mini_encoder_only = _encoder("mini")
m2d_x_vit_tiny_encoder_only = _encoder("tiny")
m2d_x_vit_small_encoder_only = _encoder("small")
m2d_x_vit_base_encoder_only = _encoder("base")
m2d_x_vit_large_encoder_only = _encoder("large")
m2d_as_vit_mini_encoder_only = _encoder("mini")
m2d_as_vit_tiny_encoder_only = _encoder("tiny")
m2d_as_vit_small_encoder_only = _encoder("small")
m2d_as_vit_base_encoder_only = _encoder("base")
m2d_as_vit_large_encoder_only = _encoder("large")
m2d_s_vit_mini_encoder_only = _encoder("mini")
m2d_s_vit_tiny_encoder_only = _encoder("tiny")
m2d_s_vit_small_encoder_only = _encoder("small")
m2d_s_vit_base_encoder_only = _encoder("base")
m2d_s_vit_large_encoder_only = _encoder("large")
m2d_clap_vit_mini_encoder_only = _encoder("mini")
m2d_clap_vit_tiny_encoder_only = _encoder("tiny")
m2d_clap_vit_small_encoder_only = _encoder("small")
m2d_clap_vit_base_encoder_only = _encoder("base")
m2d_clap_vit_large_encoder_only = _encoder("large")

mae_vit_base_patch16 = _image("mae")
m2d_vit_base_patch16 = _image("m2d")
m2d_d2v_vit_base_patch16 = _image("m2d_d2v")

#: Every builder by its name.
BUILDERS: dict[str, Builder] = {name: value for name, value in globals().items() if isinstance(value, Builder)}


def closest(name: str, names: Iterable[str]) -> str:
    """Why a name is not one of `names`, with close ones offered."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}"
    return f"unknown model {name!r}: {hint}"


def build(name: str, **options) -> AudioViT:
    """The model of a name.

    Raises:
        ValueError: no model of that name; close ones are offered.
    """
    if name not in BUILDERS:
        raise ValueError(closest(name, BUILDERS))
    return BUILDERS[name](**options)
