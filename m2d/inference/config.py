"""Settings of a runtime."""

from typing import Any


class Config:
    """Settings of a runtime, and what it finds out: a plain container with defaults.

    Any object with attributes does in its place, such as EVAR's EasyDict; the runtime writes what it found into the one
    it was given (sizes, rates, statistics, feature_d).
    """

    weight_file = ""
    feature_d: Any = None
    norm_type = None
    pooling_type = "mean"
    model = ""
    input_size: Any = None
    patch_size: Any = None
    sr = "16k"
    training_mask = 0.0
    flat_features = False
    encoder_only = True
    dur_frames = None
    freeze_embed = None

    def __init__(self, **settings):
        unknown = [name for name in settings if not hasattr(type(self), name)]
        if unknown:
            raise TypeError(f"unknown settings {', '.join(unknown)}")
        vars(self).update(settings)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def given(value: Any, cfg: Any, name: str) -> Any:
    """An argument where one is given, else the entry of cfg, else the default; None, 'None' and '' count as not given."""
    for candidate in (value, getattr(cfg, name, None), getattr(Config, name)):
        if not (candidate is None or (isinstance(candidate, str) and candidate.strip() in ("", "None", "none", "null"))):
            return candidate
    return None


def flag(value: object) -> bool:
    """A yes or no that may come as text."""
    return value.strip().lower() in ("true", "1", "yes") if isinstance(value, str) else bool(value)
