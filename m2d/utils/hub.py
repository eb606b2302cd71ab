"""The Hugging Face Hub, as its client sees it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SECONDS = 10


@contextmanager
def quiet_hub(*others: str) -> Iterator[None]:
    """Without warnings of the client, which asks again where an answer fails, or of other libraries; errors are raised."""
    with suppress(ModuleNotFoundError):
        import huggingface_hub.utils.logging  # noqa: F401  which sets the level when it is imported, which may be late
    logs = [logging.getLogger(name) for name in ("huggingface_hub", *others)]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def unreachable(name: str) -> str | None:
    """Why a repository cannot be had, at once, where the client would ask again and again for a minute: one line.

    None where it can be had for all that one request tells: it is a local path, is in the cache, or the Hub answers.

    Raises:
        ValueError: no repository can have this name.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if Path(name).exists() or constants.HF_HUB_OFFLINE or huggingface_hub.try_to_load_from_cache(name, "config.json"):
        return None
    url = huggingface_hub.hf_hub_url(name, "config.json")
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=_SECONDS)
    except errors.HfHubHTTPError:  # an answer, which the caller's library explains
        return None
    except Exception:  # of HTTP clients that differ by version, of the system
        return f"{constants.ENDPOINT} is not reached, and the cache does not have it"
    return None
