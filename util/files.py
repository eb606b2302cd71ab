"""Writing files whole or not at all, for the preparation programs. Free of torch, which takes seconds to import."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a file aside, then put it in the place of `path`; folders are made as needed.

    What `path` held stays when `write` fails. May be called from several threads.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with part.open("wb") as out:
            write(out)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
