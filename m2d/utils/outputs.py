"""What a program may write, decided before it starts: never one of its inputs, and nothing that it did not write."""

import csv
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from .errors import UserError

OVERWRITE_HELP = "replace output files that are there already (never an input)"


def check_outputs(
    outputs: Iterable[str | os.PathLike],
    inputs: Iterable[str | os.PathLike] = (),
    overwrite: bool = False,
    is_own: Callable[[Path], bool] | None = None,
) -> None:
    """Refuse output files that would destroy something, or that cannot be written. To be called before any work.

    Args:
        outputs: the files that the program is going to write. An existing one is refused unless `overwrite` or `is_own`.
        inputs: the files that it reads. An output that is one of them is refused always: by identity, so that links, other
            spellings and file systems without upper and lower case make no difference. Looked at only where outputs exist.
        overwrite: the user asked for existing files to be replaced (`--overwrite`).
        is_own: says of an existing file whether an earlier run of this program wrote it.

    Raises:
        UserError: names the file, and what to do.
    """
    existing: list[Path] = []
    seen: dict[str, Path] = {}
    for path in map(Path, outputs):
        check_writable(path)
        other = seen.setdefault(os.path.join(os.path.realpath(path.parent), path.name), path)
        if other is not path:
            raise UserError(f"{path} would be written twice (as {other} too): give one of them another name")
        if os.path.lexists(path):
            existing.append(path)
    if not existing:
        return
    taken = {_identity(path): path for path in existing}
    for source in inputs:
        identity = _identity(source)
        path = taken.get(identity)
        if identity is not None and path is not None:
            raise UserError(f"{path} would be written, and it is an input ({source}): give the output another name")
    for path in existing:
        if not path.is_file():
            raise UserError(f"{path} would be written, and it is there as something else than a file: give another name")
        if not (overwrite or (is_own is not None and is_own(path))):
            raise UserError(f"{path} is there already: give another name, or --overwrite to replace it")


def has_header(path: str | os.PathLike, columns: Sequence[str]) -> bool:
    """Whether a file is a CSV with exactly these columns, whose names need no quotes."""
    header = ",".join(columns).encode()
    try:
        with open(path, "rb") as file:
            return file.readline(len(header) + 3).rstrip(b"\r\n") == header
    except OSError:
        return False


def lists_only(path: str | os.PathLike, columns: Sequence[str], rows: Collection[tuple[str, ...]]) -> bool:
    """Whether a file is a list with these columns, none of whose rows is outside `rows`.

    Such a list may be replaced by one of all `rows`: nothing in it is lost.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            found = csv.reader(file)
            return next(found, None) == list(columns) and all(tuple(row) in rows for row in found)
    except (OSError, ValueError, csv.Error):
        return False


def drawn_by(path: str | os.PathLike, program: str) -> bool:
    """Whether a file is a picture of this program (`atomic_file.write_figure`)."""
    try:
        return program.encode() in Path(path).read_bytes()
    except OSError:
        return False


def check_writable(path: Path) -> None:
    """Check that a file's folder is there or can be made, and takes files (by trying: permissions do not say).

    Raises:
        UserError: names the file and the reason.
    """
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UserError(f"{path} cannot be written: {folder} is not a folder")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {folder} takes no files ({error.strerror})") from None


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """What is equal for all names of one file; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
