"""Where torch's compiler keeps its results."""

import atexit
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from .cache import cache_folder

_FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled_code() -> None:
    """Let the compiler keep its results in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR names another one.

    torch's own place is below /tmp, which does not outlive a machine or a container: a resumed run would compile again. It is
    kept where the user's folder cannot be written.
    """
    folder = cache_folder() / "compiled"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        os.environ.setdefault(_FOLDER, str(folder))


def leave_kept_code() -> Path | None:
    """Let this process compile into a new, temporary folder: kept results may be those of a process that was killed as it wrote.

    Returns:
        the folder that is no longer used, or None where it has no results, and nothing has changed.
    """
    old = Path(os.environ.get(_FOLDER, ""))
    if not (os.environ.get(_FOLDER) and old.is_dir() and any(old.iterdir())):
        return None
    new = tempfile.mkdtemp(prefix="m2d-compiled-")
    atexit.register(shutil.rmtree, new, ignore_errors=True)
    os.environ[_FOLDER] = new
    return old
