"""Files that are there whole or not at all."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from csv import writer
from io import StringIO
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to beside `path`, which takes its place, and is on the disk, when the block ends without an error.

    Raises:
        OSError: the disk is full, or the folder is not writable; what `path` held stays, and nothing is left behind.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with aside.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV in UTF-8, as a `whole_file`; bytes of file names that are no UTF-8 as \\udcXX.

    Raises:
        OSError: as whole_file.
    """
    text = StringIO()
    table = writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    with whole_file(path) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))
