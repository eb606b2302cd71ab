"""What was fetched is kept in a folder of the user's: checkpoints, and blocks of packs, the latter in bounded space."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .atomic_file import is_temporary, open_atomic, remove_leftovers
from .errors import FileError
from .own_files.own_file import open_own
from .read_file import open_regular

_COUNTER = "size"
_KEPT = 0.9  # of the space, where blocks are removed: so that this is rare
_one_thread = threading.Lock()  # record locks are a process's, not a thread's


def cache_folder() -> Path:
    """Where fetched files are kept: `$M2D_CACHE`, else `~/.cache/m2d`."""
    return Path(os.environ.get("M2D_CACHE") or Path.home() / ".cache" / "m2d")


class BlockCache:
    """Blocks of bytes by name, in files of one folder that all processes of a machine share.

    The blocks that were not used for longest are removed before another would exceed the space. The size is counted
    in a file that is locked meanwhile, and is taken from the folder itself whenever blocks are removed.

    Args:
        folder: where they are; it is created.
        max_bytes: the space.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes

    def read_into(self, name: str, size: int, begin: int, out: memoryview) -> bool:
        """Fill `out` with a block's bytes from `begin` on; False if there is no such block of this size.

        Raises:
            FileError: the folder cannot be read.
        """
        try:
            fd = open_regular(self.folder / name)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unusable(error) from error
        try:
            if os.fstat(fd).st_size != size:  # a machine that lost power leaves such
                return False
            with suppress(OSError):
                os.utime(fd)  # its last use
            return os.preadv(fd, [out], begin) == len(out)
        finally:
            os.close(fd)

    def add(self, name: str, content: bytes) -> None:
        """Keep a block.

        Raises:
            FileError: the disk is full, or the folder is not writable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._reserve(len(content))
            with open_atomic(self.folder / name, durable=False) as file:
                file.write(content)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> FileError:
        return FileError(
            f"{self.folder}: the cache cannot be used ({error.strerror or error}): free space there, set M2D_CACHE_GB to what "
            "fits, or M2D_CACHE to another folder"
        )

    def _reserve(self, count: int) -> None:
        with self._counter() as file:
            recorded = file.read()
            used = (int(recorded) if recorded.isdigit() else self.max_bytes) + count
            if used > self.max_bytes:
                used = self._evict(int(self.max_bytes * _KEPT) - count) + count
            file.truncate(0)
            file.write(b"%d" % used)

    @contextmanager
    def _counter(self) -> Iterator[IO[bytes]]:
        """The file that holds the size, locked."""
        with _one_thread, open_own(self.folder / _COUNTER) as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file
            file.flush()

    def _evict(self, most: int) -> int:
        """Remove blocks until at most `most` bytes are left. Returns how many are left."""
        remove_leftovers(self.folder)
        used, blocks = 0, []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name == _COUNTER:
                    continue
                with suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
                    found = entry.stat(follow_symlinks=False)
                    used += found.st_size
                    if not is_temporary(entry.path):
                        blocks.append((found.st_mtime_ns, found.st_size, entry.path))
        for _, size, path in sorted(blocks):
            if used <= most:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return used
