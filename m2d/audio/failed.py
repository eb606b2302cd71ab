"""failed.csv, beside what was converted: what was not, and why. A shard writes a file of its own."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..utils.atomic_file import write_csv
from ..utils.names import shown
from ..utils.outputs import has_header
from ..utils.shard import WHOLE, Shard

FAILED_OF_ALL = "failed*.csv"
FAILED_COLUMNS, PACK_FAILED_COLUMNS = ("file_name", "reason"), ("file_name", "chunk", "reason")
_FAILED_OF_SHARDS = "failed-*-of-*.csv"

logger = logging.getLogger("m2d")


def failed_name(shard: Shard) -> str:
    """The file's name: failed.csv, or failed-2-of-4.csv."""
    return shard.name("failed", ".csv")


def remove_merged(folder: Path, shard: Shard, columns: Sequence[str]) -> None:
    """Remove the files of shards where a run without shards has written failed.csv in their place."""
    if shard == WHOLE:
        for path in folder.glob(_FAILED_OF_SHARDS):
            if has_header(path, columns):
                path.unlink()


def write_failed(folder: Path, shard: Shard, failed: Mapping[str, str]) -> None:
    """Write the names and reasons of files that have no spectrogram, or remove the file where there are none."""
    path = folder / failed_name(shard)
    try:
        if failed:
            write_csv(path, FAILED_COLUMNS, sorted(failed.items()))
        else:
            path.unlink(missing_ok=True)
        remove_merged(folder, shard, FAILED_COLUMNS)
    except OSError as error:
        logger.warning("%s cannot be written: %s", shown(path), error.strerror)
