"""The Hugging Face Hub, as its client sees it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress


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


def unreachable(repository: str, file: str = "config.json", revision: str | None = None) -> str | None:
    """Why a file cannot be fetched, in one line. Asks once; the client itself would retry for half a minute or more.

    None where the file is in the cache, the client is set to work offline, or the Hub answers, even with an error.

    Raises:
        ValueError: no repository can have this name.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
    if constants.HF_HUB_OFFLINE or isinstance(cached, str):
        return None
    url = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.HfHubHTTPError:  # an answer, which the caller's library explains
        return None
    except Exception:  # of HTTP clients that differ by version, of the system
        return f"{constants.ENDPOINT} cannot be reached, and the cache has no {file} of {repository}"
    return None
