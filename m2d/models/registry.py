"""The published names: a table from a model's name to its class and sizes.

Each builder takes `img_size`, `patch_size`, `decoder_depth`, `norm_pix_loss`, `loss_type`, `target_layers`, `loss_m2d`,
`loss_off`, `off_emb_dim` and `norm_stats`; those that do not concern a model are accepted and ignored.
`build(name, **options)` does the same for a name that a person has typed.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import cache, partial

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
    "norm_stats",
)

ENCODERS = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
}
PREDICTORS = {
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
}


@cache
def _accepted(model_class: type) -> frozenset[str]:
    """Keyword arguments that a model class or one of its parents takes."""
    parameters = (inspect.signature(cls.__init__).parameters for cls in model_class.__mro__ if cls is not object)
    return frozenset(name for names in parameters for name in names)


def _build(model_class: type[AudioViT], sizes: dict, **options) -> AudioViT:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TypeError(f"unknown model options {', '.join(unknown)}: choose from {', '.join(OPTIONS)}")
    accepted = _accepted(model_class)
    return model_class(**{**{k: v for k, v in options.items() if k in accepted}, **sizes})


def _builders() -> dict[str, Callable[..., AudioViT]]:
    table = {}
    for family, model_class in FAMILIES.items():
        for size, encoder in ENCODERS.items():
            predictor = MSM_DECODER if family == "msm_mae" else PREDICTORS[size]
            name = f"{family}_vit_{size}"
            table[name] = partial(_build, model_class, {**encoder, **predictor})
            table[f"{name}_encoder_only"] = partial(_build, M2DEncoderViT, encoder)
    for family in ("mae", "m2d", "m2d_d2v"):
        image = dict(patch_size=16, in_chans=3, **ENCODERS["base"], **PREDICTORS["base"])
        table[f"{family}_vit_base_patch16"] = partial(_build, FAMILIES[family], image, img_size=224)
    return table


BUILDERS = _builders()
globals().update(BUILDERS)


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
