"""A model's sizes: read from the name of a checkpoint's folder, or from what the file itself tells."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

PATTERN = "{model}-{mel bands}x{frames}p{patch bands}x{patch frames}[p{rate}k]-…"
EXAMPLE = "m2d_vit_base-80x608p16x16-221006"
_NAME = re.compile(r"(?<![A-Za-z0-9_])([A-Za-z]\w*)-(\d+)x(\d+)p(\d+)x(\d+)(?:p(\d+k))?(?![A-Za-z0-9])")


class ModelSpec(NamedTuple):
    """What a checkpoint's name tells: `[mels, frames]`, `[patch mels, patch frames]`, sample rate ("16k"), model's name."""

    input_size: list[int]
    patch_size: list[int]
    sr: str
    model: str

    def __str__(self) -> str:
        (mels, frames), (height, width) = self.input_size, self.patch_size
        return f"{self.model}-{mels}x{frames}p{height}x{width}p{self.sr}"


def parse_sizes_by_name(name: str) -> ModelSpec:
    """ModelSpec from a name such as `m2d_vit_base-80x608p16x16p32k-240413`, found anywhere in it; 16k where no rate stands.

    Raises:
        ValueError: the name does not tell.
    """
    found = _NAME.search(str(name))
    if not found:
        raise ValueError(f"the name {str(name)!r} does not tell the model's sizes: expected {PATTERN}, such as {EXAMPLE}")
    model, mels, frames, height, width, rate = found.groups()
    return ModelSpec([int(mels), int(frames)], [int(height), int(width)], rate or "16k", model)


def spec_of_path(path: str | Path) -> ModelSpec | None:
    """ModelSpec from the folder's name, else from the file's own; None where neither tells."""
    path = Path(path).absolute()
    for name in (path.parent.name, path.name):
        if _NAME.search(name):
            return parse_sizes_by_name(name)
    return None


def _pair(value: object) -> list[int]:
    """`[a, b]` from "axb" or a pair."""
    first, second = value.lower().split("x") if isinstance(value, str) else value
    return [int(first), int(second)]


def spec_of_settings(settings: Mapping | None) -> ModelSpec | None:
    """ModelSpec from the settings a file carries (model, input_size, patch_size, sr); None where they do not tell."""
    if not settings or not all(settings.get(key) for key in ("model", "input_size", "patch_size")):
        return None
    try:
        input_size, patch_size = _pair(settings["input_size"]), _pair(settings["patch_size"])
    except (TypeError, ValueError):
        return None
    return ModelSpec(input_size, patch_size, str(settings.get("sr") or "16k"), str(settings["model"]))
