"""Checkpoints from the web, fetched once into a cache."""

import hashlib
import re
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from ..utils.cache import cache_folder
from ..utils.download import DownloadError, download

MAX_BYTES = 20e9


def fetch(address: str, check: Callable[[Path], None]) -> Path:
    """The cached file of an https address, fetched if it is not there.

    Args:
        address: https://…
        check: raises ValueError if a file is not what it should be; what is refused is not cached.

    Raises:
        DownloadError: it is no https address, cannot be fetched, or is refused.
        OSError: the cache cannot be written.
    """
    if not address.startswith("https://"):
        raise DownloadError(f"{address}: only https addresses and local paths are read")
    path = _cached_path(address)
    if not path.exists():
        download(address, path, check, MAX_BYTES)
    return path


def _cached_path(address: str) -> Path:
    """Keeps the folder's and the file's name, which give the model's sizes; a hash distinguishes addresses."""
    parts = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(address).path.split("/") if part]
    names = [re.sub(r"[^\w.+-]", "_", part).lstrip(".") or "_" for part in parts[-2:]]
    return cache_folder().joinpath(hashlib.sha256(address.encode()).hexdigest()[:12], *(names or ["checkpoint"]))
