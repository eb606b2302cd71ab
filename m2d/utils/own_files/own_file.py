"""Files that are filled over time under a name that is known before: locks, downloads, results so far."""

import errno
import os
import stat
from pathlib import Path
from typing import IO, Any

from ..errors import UserError

_OTHER_KIND = (errno.ELOOP, errno.EISDIR, errno.ENXIO)


def open_own(path: Path, mode: str = "a+b") -> IO[Any]:
    """Open a file that only this program writes, as `open` does, but never through a link.

    Raises:
        UserError: a link, or something else than a file, is at the path.
        OSError: it cannot be opened.
    """
    return open(path, mode, opener=_open_plain, encoding=None if "b" in mode else "utf-8")


def _open_plain(path: str, flags: int) -> int:
    try:
        descriptor = os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno in _OTHER_KIND:
            raise _is_not_ours(path) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _is_not_ours(path)
    if flags & os.O_TRUNC:
        os.truncate(descriptor, 0)
    return descriptor


def _is_not_ours(path: str | Path) -> UserError:
    return UserError(f"{path} is there as a link or another thing than a file of this program: move it away")
