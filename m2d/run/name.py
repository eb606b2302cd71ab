"""The output folder's name: the model, its sizes, the date, and what differs from the defaults."""

import re
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple


class NamePart(NamedTuple):
    """One setting in a name: its flag, its key, and the value at which it is left out."""

    flag: str
    key: str
    default: object


DEFAULT_TEXT_ENCODER = "A"  # of M2D-CLAP

#: In the order in which they stand in a name.
PARTS = (
    NamePart("csv_main", "M", "data/files_audioset.csv"),
    NamePart("csv_bg_noise", "D", ""),
    NamePart("ema_decay_init", "ema", 0.99995),
    NamePart("ema_decay", "ed", 0.99999),
    NamePart("decoder_depth", "dd", 8),
    NamePart("mask_ratio", "mr", 0.7),
    NamePart("seed", "s", 0),
    NamePart("norm_pix_loss", "~N", True),
    NamePart("loss_fn", "L", "norm_mse"),
    NamePart("optim", "O", "adamw"),
    NamePart("warmup_epochs", "wu", 20),
    NamePart("blr", "blr", 3e-4),
    NamePart("lr", "lr", None),
    NamePart("effective_batch", "bs", 2048),
    NamePart("accum_iter", "a", 1),
    NamePart("loss_m2d", "lm", 1.0),
    NamePart("loss_off", "lo", 0.0),
    NamePart("noise_ratio", "nr", 0.0),
    NamePart("min_ds_size", "dn", 10000),
    NamePart("cont_mask", "C", 0),
    NamePart("sem_mode", "sm", 0),
)


def short_number(value: float) -> str:
    """A number as names have it: a rule on strings (1.0 is 1, 0.7 is .7, 0.05 is 05, 1e-05 stays)."""
    return str(value).replace(".0", "").replace("0.", ".")


def short_path(path: str) -> str:
    """The first letters of a path's parts, split at `/` and `_`: data/files_main.csv is dfm."""
    return "".join(part[0] for part in re.split("[/_]", path) if part)


def _short(part: NamePart, value: object) -> str:
    if part.flag in ("csv_main", "csv_bg_noise"):
        return short_path(str(value))
    if part.flag == "norm_pix_loss":
        return ""
    if part.flag == "loss_fn":
        return str(value)[0]
    return short_number(value)


def differences(settings: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """Key and value of each setting that is not at its default; settings that a run does not have are left out."""
    found = []
    for part in PARTS:
        default = defaults.get(part.flag, part.default)
        if part.flag in settings and settings[part.flag] != default:
            found.append(part.key + _short(part, settings[part.flag]))
    return "".join(found)


def run_name(
    settings: Mapping[str, object],
    effective_batch: int,
    defaults: Mapping[str, object],
    with_rate: bool,
    with_epochs: bool,
    today: date,
) -> str:
    """The name of a run's folder (the names of released runs depend on this rule).

    Args:
        settings: the run's settings, by flag.
        effective_batch: clips per update.
        defaults: values at which a setting is left out, where they are not those of `PARTS`.
        with_rate: name the sampling rate (M2D and M2D-AS).
        with_epochs: end with the number of epochs (M2D and M2D-AS).
        today: the date in the name.
    """
    rate = f"p{settings['sr']}" if with_rate else ""
    letter = str(settings.get("text_encoder", DEFAULT_TEXT_ENCODER))
    encoder = f"p{letter}" if letter != DEFAULT_TEXT_ENCODER and re.fullmatch("[A-Z]", letter) else ""
    encoder += "pTI" if encoder and "base_model" in settings else ""  # the text encoder is in the checkpoint
    epochs = f"-e{settings['epochs']}" if with_epochs else ""
    sizes = f"{settings['input_size']}p{settings['patch_size']}{rate}{encoder}"
    differing = differences({**settings, "effective_batch": effective_batch}, defaults)
    return f"{settings['model']}-{sizes}-{today:%y%m%d}-{differing}{epochs}"
