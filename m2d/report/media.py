"""Pictures and sounds as they stand in a page: data URIs of small PNG and MP3 files."""

import base64
import io
import logging
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from matplotlib import colormaps
from PIL import Image

from .clips import read_beginning

#: The one colour map of spectrograms.
COLOURS = "magma"
SOUND_SECONDS = 6.0
_MASK_GREY = (138, 146, 155)
_SOUND_RATE = 16000
_MP3_COMPRESSION = 0.9  # of 0 to 1: about 3 kB a second

logger = logging.getLogger("m2d")


def data_uri(content: bytes, kind: str) -> str:
    """A file's bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@cache
def _palette() -> bytes:
    return (colormaps[COLOURS](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8).tobytes()


def value_range(lms: np.ndarray) -> tuple[float, float]:
    """The values of a log-mel that become black and white: all but a few outliers and those that are no numbers."""
    finite = lms[np.isfinite(lms)]
    low, high = np.percentile(finite, [1, 99.9]) if finite.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-3))


def spectrogram_uri(lms: np.ndarray, limits: tuple[float, float] | None = None) -> str:
    """A log-mel `[n_mels, frames]` as a PNG, low frequencies at the bottom.

    Args:
        limits: the values that become black and white.
    """
    low, high = limits or value_range(lms)
    levels = ((np.nan_to_num(lms, nan=low) - low) / (high - low) * 255).clip(0, 255).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels[::-1])).convert("P")
    image.putpalette(_palette())
    return data_uri(_png(image), "image/png")


def mask_uri(hidden: np.ndarray) -> str:
    """Masked patches, bool `[F, T]`, as a PNG of a pixel each, grey where masked, to be laid over the spectrogram."""
    pixels = np.where(hidden[::-1, :, None], np.uint8([*_MASK_GREY, 255]), np.uint8(0))
    return data_uri(_png(Image.fromarray(pixels)), "image/png")


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def thumbnail(lms: np.ndarray, width: int = 160) -> np.ndarray:
    """A log-mel `[n_mels, frames]` of half its bands and at most `width` columns, each the mean of the columns it replaces."""
    columns = np.array_split(np.arange(lms.shape[1]), min(width, lms.shape[1]))
    narrow = np.stack([lms[:, part].mean(axis=1) for part in columns], axis=1)
    return narrow[: len(narrow) // 2 * 2].reshape(-1, 2, narrow.shape[1]).mean(axis=1)


def sound_uri(path: Path) -> str | None:
    """The first seconds of an audio file as an MP3; none where it cannot be read."""
    try:
        samples = read_beginning(path, _SOUND_RATE, round(SOUND_SECONDS * _SOUND_RATE))
        peak = np.abs(samples).max(initial=0)
        content = io.BytesIO()
        soundfile.write(content, samples / max(peak, 1.0), _SOUND_RATE, format="MP3", compression_level=_MP3_COMPRESSION)
    except (OSError, ValueError, soundfile.LibsndfileError) as error:
        logger.warning("no sound in the page: %s", error)
        return None
    return data_uri(content.getvalue(), "audio/mpeg")
