"""One process at a time: a lock file that the operating system frees when its holder ends, however it ends."""

import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from ..atomic_file import naming
from ..errors import UserError
from .own_file import open_own

_BEGIN = b"process "

logger = logging.getLogger("m2d")


class LockedError(UserError):
    """Another process holds a lock; `holder` says which."""

    def __init__(self, path: Path, holder: str):
        super().__init__(f"{path} is held by {holder}")
        self.holder = holder


def hold_lock(path: Path) -> IO[bytes]:
    """Create and hold a lock file until it is closed or this process ends.

    By a record lock (POSIX): it holds between containers too, and programs started from here do not inherit it. Where the
    file system has no locks, a warning says so.

    Raises:
        LockedError: another process holds it.
        UserError: something else is at the path: a link, another kind of file, or a file that is no lock.
        OSError: it cannot be created.
    """
    file = _open_lock(path)
    with naming(path):
        try:
            _lock(path, file)
            if not _is_at(path, file):  # its last holder removed it before we had it
                file.close()
                return hold_lock(path)
            file.truncate(0)
            file.write(_BEGIN + f"{os.getpid()} on {platform.node()} since {datetime.now():%Y-%m-%d %H:%M:%S}".encode())
            file.flush()
        except BaseException:
            file.close()
            raise
    return file


def is_held(path: Path) -> bool:
    """Whether another process holds a lock file."""
    try:
        with path.open("rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs, and remove it. Raises as `hold_lock`."""
    with hold_lock(path):
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _open_lock(path: Path) -> IO[bytes]:
    file = open_own(path)
    if os.pread(file.fileno(), len(_BEGIN), 0) not in (b"", _BEGIN):
        file.close()
        raise UserError(f"{path} is there and is no lock file of this program: move it away")
    file.seek(0)
    return file


def _is_at(path: Path, file: IO[bytes]) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    return False


def _lock(path: Path, file: IO[bytes]) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = file.read(200).decode(errors="replace").strip()
        raise LockedError(path, holder or "another process") from None
    except OSError as error:
        logger.warning("%s: its file system has no locks (%s): take care that one process uses it", path, error.strerror)
