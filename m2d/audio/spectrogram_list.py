"""The list of a conversion's spectrograms: their names and, of parquet files, labels and what else a column holds."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..utils.atomic_file import write_csv
from ..utils.names import counted, shown
from ..utils.outputs import check_outputs, lists_only
from .convert import Job
from .sources.parquet import ParquetRow, columns_of

_LABELS = ("label", "labels")

logger = logging.getLogger("m2d")


class SpectrogramList:
    """What is written to `path`: a column file_name, relative to the list's folder, and columns of parquet files.

    Args:
        path: the list.
        jobs: all files of the conversion.
        columns: of parquet files, such as "label=category,group=fold": names in the list and there, which may be the same
            ("label"). None: label, where a file has a column of that name or `labels`.
        separator: between several values of a row.
        overwrite: replace a list that is there and that no conversion of these files wrote; never an input.

    Raises:
        ValueError: the columns are invalid, or are not there; a list or an input would be replaced.
    """

    def __init__(self, path: Path, jobs: Sequence[Job], columns: str | None, separator: str, overwrite: bool):
        self.path, self._folder, self._separator = path, Path(os.path.abspath(path)).parent, separator
        chosen = _default_columns(jobs) if columns is None else _parsed(columns)
        self._sources = list(chosen.values())
        self.header = ("file_name", *chosen)
        # Read once, and before hours of work, so that errors come early.
        self._texts = {job.name: self._texts_of(job) for job in jobs} if self._sources else {}
        inputs = (job.source for job in jobs if job.source.endswith(".csv"))
        check_outputs([path], inputs, overwrite, lambda path: lists_only(path, self.header, set(map(self._row, jobs))))

    def write(self, jobs: Iterable[Job]) -> None:
        """Write the list of these."""
        rows = [self._row(job) for job in jobs]
        write_csv(self.path, self.header, rows)
        logger.info("%s lists %s", shown(self.path), counted(len(rows), "file"))

    def _row(self, job: Job) -> tuple[str, ...]:
        return Path(job.target).relative_to(self._folder).as_posix(), *self._texts.get(job.name, ())

    def _texts_of(self, job: Job) -> Sequence[str]:
        if not isinstance(job.place, ParquetRow):
            raise ValueError(f"{shown(job.source)} is in no parquet file: --columns needs parquet files")
        return job.place.texts(self._sources, self._separator)


def _default_columns(jobs: Sequence[Job]) -> dict[str, str]:
    paths = {job.place.path if isinstance(job.place, ParquetRow) else None for job in jobs}
    if None in paths:
        return {}
    shared = set.intersection(*(set(columns_of(path)) for path in paths if path))
    return next(({"label": name} for name in _LABELS if name in shared), {})


def _parsed(columns: str) -> dict[str, str]:
    chosen = {}
    for part in filter(None, columns.split(",")):
        name, _, source = (word.strip() for word in part.partition("="))
        if not name or name == "file_name" or name in chosen:
            raise ValueError(f"--columns {columns}: expected columns such as label or label=category,group=fold, each once")
        chosen[name] = source or name
    return chosen
