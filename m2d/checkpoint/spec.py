"""A model's sizes: read from the name of a checkpoint's folder, or from the settings in the file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import CheckpointError

PATTERN = "{model}-{mel bands}x{frames}p{patch bands}x{patch frames}[p{rate}k][p{text encoder}[pTI]]-…"
EXAMPLE = "m2d_vit_base-80x608p16x16-221006"
_NAME = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z]\w*)-(\d+)x(\d+)p(\d+)x(\d+)(?:p(\d+k))?((?:p[A-Z]+)*)(?![A-Za-z0-9])")
#: The text encoder of M2D-CLAP where a name has no letter for one.
DEFAULT_TEXT_ENCODER = "A"
_MOST_PATCHES = 1 << 17  # of a model's input; the published ones have some hundreds


class ModelSpec(NamedTuple):
    """Sizes of a model: `[mels, frames]`, `[patch mels, patch frames]`, sample rate ("16k"), model's name."""

    input_size: list[int]
    patch_size: list[int]
    sr: str
    model: str

    def __str__(self) -> str:
        (mels, frames), (height, width) = self.input_size, self.patch_size
        return f"{self.model}-{mels}x{frames}p{height}x{width}p{self.sr}"


def _check_sizes(input_size: list[int], patch_size: list[int]) -> None:
    """Raise ValueError for sizes that no model has: a model is built by them, whatever they are."""
    (mels, frames), (height, width) = input_size, patch_size
    if not (1 <= height <= mels and 1 <= width <= frames and (mels // height) * (frames // width) <= _MOST_PATCHES):
        raise ValueError(f"an input of {str(mels)[:20]}x{str(frames)[:20]} in patches of {str(height)[:20]}x{str(width)[:20]}")


def parse_sizes_by_name(name: str) -> ModelSpec:
    """Sizes from a name such as `m2d_vit_base-80x608p16x16p32k-240413`, found anywhere in it; 16k where the name has no rate.

    Raises:
        ValueError: the name has no sizes, or sizes that no model has.
    """
    found = _NAME.search(str(name))
    if not found:
        raise ValueError(f"the name {str(name)!r} does not give the model's sizes: expected {PATTERN}, such as {EXAMPLE}")
    model, rate = found[1], found[6]
    try:
        mels, frames, height, width = map(int, found.groups()[1:5])
        _check_sizes([mels, frames], [height, width])
    except ValueError as error:
        raise CheckpointError(f"the name {str(name)!r} has sizes that no model has: {error}") from None
    return ModelSpec([mels, frames], [height, width], rate or "16k", model)


def _telling_name(path: str | Path) -> str | None:
    """The folder's name, the file's own or the repository's in the Hugging Face cache, whichever has sizes first."""
    path = Path(path).absolute()
    repository = path.parents[2].name if path.parent.parent.name == "snapshots" else ""
    return next(filter(_NAME.search, (path.parent.name, path.name, repository)), None)


def spec_of_path(path: str | Path) -> ModelSpec | None:
    """Sizes from the folder's name, else from the file's own, else from the repository's in the Hugging Face cache.

    None where none has them.

    Raises:
        CheckpointError: they are sizes that no model has.
    """
    name = _telling_name(path)
    return None if name is None else parse_sizes_by_name(name)


def text_encoder_of_path(path: str | Path) -> str:
    """The letter of M2D-CLAP's text encoder in a checkpoint's name, such as B in `m2d_clap_vit_base-80x1001p16x16p16kpBpTI-2025`.

    A where the name has none.
    """
    found = _NAME.search(_telling_name(path) or "")
    letters = found[7].split("p")[1:] if found else []
    return next((letter for letter in letters if len(letter) == 1), DEFAULT_TEXT_ENCODER)


def _pair(value: Any) -> list[int] | None:
    """`[a, b]` from "axb" or a pair of numbers; None from anything else."""
    try:
        first, second = value.lower().split("x") if isinstance(value, str) else value
        return [int(first), int(second)]
    except (TypeError, ValueError, OverflowError):
        return None


def _stated(settings: Mapping | None) -> dict:
    """The sizes that settings hold, by the fields of ModelSpec."""
    if not settings:
        return {}
    stated = {key: _pair(settings.get(key)) for key in ("input_size", "patch_size")}
    stated |= {key: settings.get(key) if isinstance(settings.get(key), str) else None for key in ("sr", "model")}
    return {key: value for key, value in stated.items() if value}


def spec_of_settings(settings: Mapping | None) -> ModelSpec | None:
    """Sizes from the settings in a file (model, input_size, patch_size, sr); None where one is missing.

    Raises:
        CheckpointError: they are sizes that no model has.
    """
    stated = _stated(settings)
    if not {"model", "input_size", "patch_size"} <= stated.keys():
        return None
    try:
        _check_sizes(stated["input_size"], stated["patch_size"])
    except ValueError as error:
        raise CheckpointError(f"the settings in the file have sizes that no model has: {error}") from None
    return ModelSpec(**{"sr": "16k"} | stated)


def agreed_spec(path: Path, settings: Mapping | None) -> ModelSpec | None:
    """Sizes of a checkpoint by its name, else by the settings in the file; None where neither has them.

    Raises:
        CheckpointError: the two contradict each other, or are sizes that no model has.
    """
    try:
        named, stored = spec_of_path(path), spec_of_settings(settings)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if named is None:
        return stored
    stated = _stated(settings)
    for field in ("input_size", "patch_size", "sr"):
        by_name = getattr(named, field)
        if stated.get(field, by_name) != by_name:
            raise CheckpointError(
                f"{path}: its name says {field} {_shown(by_name)}, the settings in the file {_shown(stated[field])}: "
                "rename the folder (or the file) to what it holds"
            )
    return named


def _shown(value: str | list[int]) -> str:
    return ("x".join(map(str, value)) if isinstance(value, list) else value)[:40]
