"""Whose weights a checkpoint holds, judged by its name and its settings."""

import re
from dataclasses import dataclass

from ..checkpoint.shipped import FOLDER, SHIPPED
from ..checkpoint.weights import Weights
from ..utils.errors import UserError
from ..utils.names import shown

NTT = "ntt"
NTT_LICENCE = "https://github.com/nttcslab/m2d/blob/HEAD/LICENSE.pdf"
#: The names of released weights (docs/weights.md), without what marks an encoder alone or a checksum.
RELEASED = (
    "m2d_as_vit_base-80x1001p16x16-240213_AS-FT",
    "m2d_vit_base-80x1001p16x16-221006-mr7_as_46ab246d",
    "m2d_vit_base-80x200p16x4-230529",
    "m2d_as_vit_base-80x608p16x16-240213",
    "m2d_vit_base-80x608p16x16-221006-mr7",
    "m2d_vit_base-80x608p16x16-221006-mr6",
    "m2d_vit_base-80x608p16x16-220930-mr7",
    "m2d_as_vit_base-80x1001p16x16p32k-240413_AS-FT",
    "m2d_as_vit_base-80x608p16x16p32k-240413",
    "m2d_s_vit_base-80x608p80x2-230220",
    "m2d_s_vit_base-80x512p80x2-230301",
    "m2d_s_vit_base-80x400p80x2-230201",
)
_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Licence:
    """The licence of weights.

    Attributes:
        name: `ntt`, an identifier of the Hub such as apache-2.0, or None where it is not known.
        origin: the name of the released weights that these are, or were trained from.
    """

    name: str | None
    origin: str | None = None


def released_name(text: str) -> str | None:
    """The name of NTT's released weights in a text; None where there is none."""
    return next((name for name in sorted(RELEASED, key=len, reverse=True) if name in text), None)


def origin_of(weights: Weights) -> str | None:
    """The released weights that a checkpoint is, or was trained from, by its name and settings; None where these have none."""
    settings = (str(value) for value in (weights.args or {}).values())
    named = (released_name(text) for text in (*weights.path.absolute().parts[-2:], *settings))
    return next(filter(None, named), None)


def find_licence(weights: Weights, stated: str | None) -> Licence:
    """The licence of a checkpoint: NTT's where its name or its settings name released weights, else as its owner states.

    That of the encoders that come with this project is known.

    Args:
        weights: the checkpoint.
        stated: what its owner says; None: nothing.

    Raises:
        UserError: it contradicts the name, or is no identifier.
    """
    origin = origin_of(weights)
    if stated is not None and not _IDENTIFIER.fullmatch(stated):
        raise UserError(f"--licence {stated}: an identifier in lower case is expected, such as apache-2.0, cc-by-4.0 or {NTT}")
    if origin and stated not in (None, NTT):
        raise UserError(
            f"--licence {stated}: {shown(weights.path)} names {origin}, weights that NTT released under a licence of its own: "
            f"leave --licence out, or --licence {NTT}"
        )
    own = (shipped.licence for shipped in SHIPPED.values() if weights.path.absolute() == FOLDER / shipped.file)
    return Licence(NTT if origin else stated or next(own, None), origin)
