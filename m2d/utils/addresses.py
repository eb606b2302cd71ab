"""Addresses (https, s3 and what else fsspec reads): what they are, and how they are shown without their secrets."""

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from .errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_MOST_CHARACTERS = 300  # of a reason


def is_address(path: str | Path) -> bool:
    """Whether a path is an address: scheme://…"""
    return isinstance(path, str) and _SCHEME.match(path) is not None


def public_name(address: str) -> str:
    """An address without what may be a secret: a user's name and password, and what follows a question mark."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def public_reason(error: BaseException, address: str) -> str:
    """Why an address could not be read, in one line that has the address without its secrets."""
    return " ".join(f"{type(error).__name__}: {error}".replace(address, public_name(address)).split())[:_MOST_CHARACTERS]


def check_protocols(protocols: Iterable[str]) -> None:
    """Raise UserError where fsspec, or what it needs for one of these protocols, is not installed."""
    hint = "pip install 'm2d-audio[remote]'"
    try:
        import fsspec
    except ImportError:
        raise UserError(f"addresses are read by fsspec: {hint}") from None
    for protocol in sorted(protocols):
        try:
            fsspec.get_filesystem_class(protocol)
        except ImportError as error:
            raise UserError(f"{protocol}:// needs more than is installed ({' '.join(str(error).split())}): {hint}") from None
        except ValueError:
            raise UserError(f"{protocol}:// is no protocol that fsspec knows") from None
