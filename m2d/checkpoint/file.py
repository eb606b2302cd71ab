"""Checkpoint files: found, fetched, read without running code, verified, and written whole or not at all."""

import argparse
import difflib
import logging
import pathlib
import pickle
import re
import shlex
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from ..utils.atomic_file import open_atomic
from ..utils.errors import UserError, first_line
from ..utils.read_file import ZIP_ERRORS
from .download import MAX_BYTES, fetch
from .errors import CheckpointError
from .hugging_face import PREFIX, fetch_from_hub, told_beside
from .mapped import MappedFile
from .shipped import SHIPPED, shipped_file

log = logging.getLogger("m2d")

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_EPOCH = re.compile(r"checkpoint-(\d+)\.(?:pth|safetensors)$")
_LFS = b"version https://git-lfs"
_BLOCK = 1 << 20
_MOST_UNPACKED, _ALWAYS_UNPACKED = 20, 1 << 28  # times the size of a compressed file; bytes


# ---------------------------------------------------------------- finding


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The files `checkpoint-N.pth` of a folder, by epoch N, the newest last."""
    numbered = [(int(found[1]), path) for path in Path(folder).iterdir() if (found := _EPOCH.match(path.name))]
    return [path for _, path in sorted(numbered)]


def _pick(folder: Path) -> Path:
    numbered = checkpoints_in(folder)
    if numbered:
        return numbered[-1]
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    if len(files) == 1:
        return files[0]
    if not files:
        raise CheckpointError(f"no checkpoint in the folder {folder}: expected checkpoint-N.pth, or one .pth or .safetensors")
    raise CheckpointError(f"several checkpoints in {folder}: name one of {', '.join(path.name for path in files)}")


def _missing(path: Path) -> FileNotFoundError:
    """The error for a path that does not exist, with names near it."""
    existing = next(parent for parent in path.absolute().parents if parent.is_dir())
    wanted = path.absolute().relative_to(existing).parts[0]
    near = difflib.get_close_matches(wanted, [entry.name for entry in existing.iterdir()], n=3, cutoff=0.6)
    hint = f": in {existing} there is {' and '.join(near)}" if near else ""
    return FileNotFoundError(f"no checkpoint {path}{hint}")


def resolve(source: str | Path) -> Path:
    """The checkpoint file that a source means.

    Args:
        source: a file; a folder (its newest `checkpoint-N.pth`, or its only .pth or .safetensors); an https address,
            fetched once into `$M2D_CACHE` (`~/.cache/m2d`); a repository of the Hugging Face Hub, hf:owner/name[@revision];
            or the name of an encoder that comes with this project (`m2d.checkpoint.shipped`).

    Raises:
        FileNotFoundError: no such file; near names are offered.
        CheckpointError: a folder without a checkpoint, or an address that cannot be fetched or leads to something else.
    """
    if str(source).startswith(PREFIX):
        return fetch_from_hub(str(source), SUFFIXES)
    if re.match(r"[a-z]+://", str(source)):
        return _fetched(str(source))
    path = Path(source).expanduser()
    if path.is_dir():
        return _pick(path)
    if not path.exists() and str(source) in SHIPPED:
        return shipped_file(str(source))
    if not path.exists():
        raise _missing(path)
    return path


# ---------------------------------------------------------------- fetching


def _fetched(address: str) -> Path:
    try:
        path = fetch(address, _check_fetched)
    except UserError as error:
        raise CheckpointError(str(error)) from error
    return path if _archived(path) is None else _unpack(path)


def _check_fetched(path: Path) -> None:
    """Raise CheckpointError unless a file is a whole checkpoint, or a sound archive of one."""
    members = _archived(path)
    if members is None:
        verify(path)
        return
    if len(members) != 1:
        raise CheckpointError(f"{path} is an archive of {len(members)} checkpoints: unpack it, and name one of {members}")
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > MAX_BYTES:
        raise CheckpointError(f"{path} would unpack to {unpacked / 1e9:.1f} GB: refused")
    _check_zip(path)


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _archived(path: Path) -> list[str] | None:
    """Checkpoint members of an archive such as the released .zip files; None for anything else, a .pth too."""
    if not _is_zip(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except ZIP_ERRORS:
        return None
    if any(name.endswith("data.pkl") for name in names):
        return None
    return [name for name in names if name.endswith(SUFFIXES) and not name.startswith("__MACOSX/")]


def _unpack(path: Path) -> Path:
    """The only checkpoint of a fetched archive, unpacked beside it under its folder's name."""
    name = (_archived(path) or [""])[0]
    member = Path(name)
    folder = path.parent / (member.parent.name or path.stem)
    target = (folder if folder != path else path.with_suffix("")) / member.name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path) as archive, archive.open(name) as source, open_atomic(target) as file:
            shutil.copyfileobj(source, file, _BLOCK)
    return target


# ---------------------------------------------------------------- reading


def _rebuild_path(*parts: str) -> str:
    """A pickled path as text: a Windows path could not be made elsewhere."""
    return str(pathlib.PurePosixPath(*parts))


def _allowed() -> list:
    """What a checkpoint may hold beside tensors and plain values: published ones pickle an argparse.Namespace."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefdFD"}
    paths = [(_rebuild_path, f"{module}.{name}") for module in ("pathlib", "pathlib._local") for name in _PATH_CLASSES]
    scalars = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, np.dtype, *dtypes, *scalars, *paths]


_PATH_CLASSES = [name for name in pathlib.__all__ if name.endswith("Path")]


def _complaint(path: Path) -> str | None:
    """What is wrong with a file, judged by its size and its first bytes."""
    if not path.is_file():
        return "is not a regular file but a pipe, a socket or a device"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if size == 0:
        return "is empty: the download or the copy failed; fetch it again"
    if head.startswith(_LFS):
        return "is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a checkpoint: the address led to a page; fetch the file itself"
    if head.startswith(b"PK") and not _is_zip(path):
        return f"is truncated: it ends after {size} bytes without the directory that closes it; fetch or copy it again"
    members = _archived(path) if head.startswith(b"PK") else None
    if members is not None:
        inside = f" that holds {', '.join(members)}" if members else ""
        return f"is a zip archive{inside}: unpack it first, and give the .pth inside"
    return None


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """The error for a pickle that asks for more than a checkpoint needs."""
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # as in _load_torch
        wanted = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not wanted:
        protocol = _pickle_protocol(path)
        if protocol > torch.serialization.DEFAULT_PROTOCOL:
            return CheckpointError(
                f"{path} was saved with pickle protocol {protocol}, which is not read without running code. "
                f"If you trust its source, save it with PyTorch's own protocol once: {_rewriting_command(path)}"
            )
        return CheckpointError(f"{path} is damaged, or no checkpoint")
    return CheckpointError(
        f"{path} runs {', '.join(sorted(wanted))} when it is loaded, which no checkpoint needs: refused. "
        f"If you trust its source, extract its weights once: {_rewriting_command(path)}"
    )


def _rewriting_command(path: Path) -> str:
    """A shell command that loads a file, running its code, and saves its weights alone."""
    code = (
        f"import torch; o = torch.load({str(path)!r}, weights_only=False, map_location='cpu'); "
        f"torch.save(o.get('model', o), {str(path.with_suffix('')) + '-weights.pth'!r})"
    )
    return f"python -c {shlex.quote(code)}"


def _pickle_protocol(path: Path) -> int:
    """The protocol of a file's pickle; 0 where its first bytes do not say."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            head = archive.open(names[0]).read(2) if names else b""
    except ZIP_ERRORS:  # an older file, or damaged
        with path.open("rb") as file:
            head = file.read(2)
    return head[1] if head[:1] == pickle.PROTO and len(head) == 2 else 0


def _is_compressed(path: Path) -> bool:
    """Whether a .pth was zipped again: its tensors cannot be mapped.

    Raises:
        CheckpointError: it would unpack to far more than weights do.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    if unpacked > _MOST_UNPACKED * path.stat().st_size + _ALWAYS_UNPACKED:
        raise CheckpointError(f"{path} would unpack to {unpacked / 1e9:.1f} GB, far more than weights do: refused")
    return any(member.compress_type != zipfile.ZIP_STORED for member in members)


def _load_torch(path: Path, mmap: bool) -> tuple[object, bool]:
    """What a file holds, and whether its tensors are mapped: those of files from before torch 1.6 cannot be."""
    try:
        mmap = _is_zip(path) and not _is_compressed(path) and mmap
        with torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols and sparse tensors: refused below
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap), mmap
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except Exception as error:  # changed bytes lead PyTorch to errors of nearly every class
        raise CheckpointError(f"{path} is damaged, or no checkpoint: {first_line(error)}; fetch or copy it again") from error


def _load_safetensors(path: Path) -> dict:
    """Tensors under `model`, the metadata as `args`; and what a config.json beside them adds."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told, metadata = told_beside(path), file.metadata() or {}
            args = {**told.pop("args", {}), **metadata}
            return {"model": {name: file.get_tensor(name) for name in file.keys()}, "args": args, **told}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged, or no safetensors file: {error}; fetch or copy it again") from error


def load_file(source: str | Path, mmap: bool = True) -> dict:
    """A checkpoint as it was saved, on the CPU, without running any code that it may hold.

    Args:
        source: as for `resolve`.
        mmap: map the tensors from the file and read what is used (legacy and compressed formats are read whole).

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: not a checkpoint, damaged, or asking for code to be run; the message says what to do.
    """
    return load_mapped(source, mmap)[0]


def load_mapped(source: str | Path, mmap: bool = True) -> tuple[Any, MappedFile | None]:
    """`load_file`, and the file that the tensors are mapped from, if they are."""
    path = resolve(source)
    complaint = _complaint(path)
    if complaint:
        raise CheckpointError(f"{path} {complaint}")
    file = MappedFile(path)
    saved, mapped = (_load_safetensors(path), False) if path.suffix == ".safetensors" else _load_torch(path, mmap)
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, not a dict of weights: no checkpoint of a model")
    return saved, file if mapped else None


# ---------------------------------------------------------------- writing and verifying


class _Recorder:
    """A file to write to that remembers its error: torch.save turns a full disk into a RuntimeError about positions."""

    def __init__(self, file: BinaryIO):
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _save(obj: object, file: BinaryIO) -> None:
    recorder = _Recorder(file)
    try:
        torch.save(obj, recorder)
    except RuntimeError as error:
        raise recorder.error or error from error


def save_atomically(obj: object, path: str | Path) -> None:
    """`torch.save` to a temporary file, then rename it to `path`: readers see the old file or the whole new one, on the disk.

    Raises:
        OSError: the disk is full, or the folder is not writable; nothing is left behind.
    """
    with open_atomic(path) as file:
        _save(obj, file)


def verify(path: str | Path) -> None:
    """Read a whole checkpoint file against its checksums (safetensors files have none: their lengths are checked).

    Raises:
        CheckpointError: the file is torn or a bit of it has changed.
    """
    path = Path(path)
    if _is_zip(path):
        _check_zip(path)
    load_file(path)


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except ZIP_ERRORS as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if broken:
        raise CheckpointError(f"{path} is damaged: the checksum of {broken} does not fit")


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint file passes `verify`; False for one that does not exist."""
    try:
        verify(path)
    except (CheckpointError, FileNotFoundError):
        return False
    return True
