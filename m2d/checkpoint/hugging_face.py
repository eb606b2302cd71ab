"""Checkpoints of the Hugging Face Hub, and the config.json beside exported weights."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..utils.errors import UserError, first_line
from ..utils.hub import quiet_hub, unreachable
from ..utils.read_file import read_json
from .errors import CheckpointError

PREFIX = "hf:"
PATTERN = "hf:owner/name[/file][@revision]"
_ADDRESS = re.compile(r"hf:(?P<repository>[^/@]+/[^/@]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>.+))?")
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


class _Address(NamedTuple):
    repository: str
    file: str | None
    revision: str | None


def source_of(name: str | Path, revision: str | None = None) -> str:
    """What `resolve` takes for a local folder or file, or for a repository's name."""
    if Path(name).expanduser().exists() or str(name).startswith(PREFIX):
        return str(name)
    return f"{PREFIX}{name}" + (f"@{revision}" if revision else "")


# ---------------------------------------------------------------- the Hub


def fetch_from_hub(address: str, suffixes: tuple[str, ...]) -> Path:
    """The cached file of a repository, fetched by huggingface_hub if it is not there or has changed.

    Cache, token, endpoint and offline mode are huggingface_hub's: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.

    Args:
        address: hf:owner/name[/file][@revision]. Without a file: model.safetensors, or the only file of one of the suffixes.
        suffixes: of checkpoints.

    Raises:
        CheckpointError: no such repository, revision or file; no connection; no permission; huggingface_hub is missing.
        OSError: the cache cannot be written.
    """
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise CheckpointError(f"{address}: expected {PATTERN}, such as hf:owner/name@main")
    wanted = _Address(**found.groupdict())
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError:
        raise CheckpointError(f"{address} needs huggingface_hub: pip install 'm2d-audio[hf]'") from None
    if wanted.file:
        return _fetch(address, wanted, wanted.file)
    try:
        path = _fetch(address, wanted, _WEIGHTS)
    except _NoSuchFileError:
        return _fetch(address, wanted, _only_checkpoint(address, wanted, suffixes))
    try:
        _fetch(address, wanted, _CONFIG)  # names of classes, which the weights do not have
    except _NoSuchFileError:
        pass
    except CheckpointError:
        if not _was_missing(wanted, _CONFIG):
            raise
    return path


class _NoSuchFileError(CheckpointError):
    """A repository without a file."""


@contextmanager
def _explained(address: str, file: str) -> Iterator[None]:
    """Raise what huggingface_hub raises as an error of one line, without the warnings before it."""
    try:
        with quiet_hub():
            yield
    except Exception as error:  # of its own classes, of HTTP clients that differ by version, of the system
        raise _explanation(address, file, error) from error


def _fetch(address: str, wanted: _Address, file: str) -> Path:
    import huggingface_hub

    with _explained(address, file):
        reason = unreachable(wanted.repository, file, wanted.revision)
        if reason is None:
            return Path(huggingface_hub.hf_hub_download(wanted.repository, file, revision=wanted.revision))
    raise CheckpointError(f"{address}: {reason}: check the network, or HF_ENDPOINT")


def _was_missing(wanted: _Address, file: str) -> bool:
    """Whether the repository had no such file when it was last asked for."""
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(wanted.repository, file, revision=wanted.revision)
    return cached is huggingface_hub._CACHED_NO_EXIST


def _only_checkpoint(address: str, wanted: _Address, suffixes: tuple[str, ...]) -> str:
    import huggingface_hub

    with _explained(address, _WEIGHTS):
        names = huggingface_hub.HfApi().list_repo_files(wanted.repository, revision=wanted.revision)
    files = [name for name in names if name.endswith(suffixes)]
    if len(files) != 1:
        holds = (
            f"holds {', '.join(files[:5])}{', …' if len(files) > 5 else ''}: name one, as" if files else "holds no checkpoint:"
        )
        raise CheckpointError(f"{address} {holds} {PATTERN}")
    return files[0]


def _explanation(address: str, file: str, error: Exception) -> Exception:
    """The error to raise for one of huggingface_hub's."""
    from huggingface_hub import constants, errors

    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        cache = constants.HF_HUB_CACHE
        return OSError(f"{address}: the cache {cache} cannot be written ({error.strerror}): free space, or set HF_HOME elsewhere")
    if isinstance(error, errors.LocalEntryNotFoundError):
        answer = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        state = f"answers {answer}" if answer else "cannot be reached"
        remedy = "unset HF_HUB_OFFLINE to fetch it" if constants.HF_HUB_OFFLINE else "check the network, or HF_ENDPOINT"
        return CheckpointError(f"{address}: {constants.ENDPOINT} {state}, and the cache has no {file}: {remedy}")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return CheckpointError(
            f"{address}: the cache has no {file}, and HF_HUB_OFFLINE is set: unset it, or name the file: {PATTERN}"
        )
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{address}: its owner grants access on request: ask on its page, then set HF_TOKEN or run hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"{address}: there is no such repository, or it is private: check the name, and set HF_TOKEN or run hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{address}: the repository has no such revision: give a branch, a tag or a commit")
    if isinstance(error, errors.EntryNotFoundError):
        return _NoSuchFileError(f"{address}: the repository has no {file}")
    return CheckpointError(f"{address} cannot be fetched: {first_line(error)}")


# ---------------------------------------------------------------- config.json


class _Config(msgspec.Struct):
    """What is used of a config.json."""

    model_type: str | None = None
    model: str | None = None
    input_size: list[int] | None = None
    patch_size: list[int] | None = None
    sr: str | None = None
    id2label: dict[int, str] = {}
    problem_type: str | None = None


def told_beside(weights: Path) -> dict[str, Any]:
    """What the config.json beside an exported model.safetensors holds: `args` with the sizes, `classes`, `single_label`.

    Nothing where there is none, or one of another model.

    Raises:
        CheckpointError: it is damaged.
    """
    path = weights.with_name(_CONFIG)
    if weights.name != _WEIGHTS or not path.exists():
        return {}
    try:
        config = read_json(path, _Config, "m2d export --to hf")
    except UserError as error:
        raise CheckpointError(str(error)) from error
    if config.model_type != "m2d":
        return {}
    sizes = {name: getattr(config, name) for name in ("model", "input_size", "patch_size", "sr")}
    return {
        "args": {name: value for name, value in sizes.items() if value is not None},
        "classes": [config.id2label[number] for number in sorted(config.id2label)],
        "single_label": config.problem_type == "single_label_classification",
    }
