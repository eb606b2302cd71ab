"""Where torch's compiler keeps its results, and what happens where it fails."""

import atexit
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from .cache import cache_folder
from .errors import first_line

logger = logging.getLogger("m2d")

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


def try_compiled(set_up: Callable[[], object], run: Callable[[], object], undo: Callable[[], object]) -> bool:
    """Set up compiled code and run it, which compiles it; where that fails, log why and undo it.

    Args:
        set_up: makes a model use compiled code.
        run: uses it.
        undo: makes the model compute as it is.

    Returns:
        whether the code is in use.
    """
    begin = time.perf_counter()
    keep_compiled_code()
    error = _error_of(set_up, run, undo)
    unused = leave_kept_code() if error else None
    if unused:
        torch.compiler.reset()
        logger.warning("compiling again, without the results in %s (delete it if this helps): %s", unused, error)
        error = _error_of(set_up, run, undo)
    if error:
        logger.warning("not compiled, running as it is: %s", error)
        return False
    logger.info("compiled in %.0f s", time.perf_counter() - begin)
    return True


def _error_of(set_up: Callable[[], object], run: Callable[[], object], undo: Callable[[], object]) -> str | None:
    try:
        set_up()
        run()
    except Exception as error:  # whatever makes the compiler fail, the model itself runs without it
        undo()
        return f"{type(error).__name__}: {first_line(error)}"
    return None
