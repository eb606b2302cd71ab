"""Archives of audio files: which there are, and what is in them."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import PurePosixPath

from ...utils.errors import FileError
from ...utils.names import shown
from ..listing import FFMPEG_SUFFIXES, SNDFILE_SUFFIXES
from .member import Contents, Member
from .parquet import parquet_contents
from .tar_archive import tar_contents
from .zip_archive import zip_contents

_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_CONTENTS = {
    ".tar": tar_contents,
    ".zip": zip_contents,
    ".parquet": parquet_contents,
    **dict.fromkeys(_COMPRESSED_TARS, tar_contents),
}
ARCHIVE_SUFFIXES = tuple(_CONTENTS)
_ARCHIVES_AT_ONCE = 8  # their headers lie far apart: most of the time is waiting for the disk


@dataclass
class Found:
    """Audio files of archives; `left_out`: what cannot be read, and why; `others`: by suffix, audio files not asked for."""

    members: list[Member] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def find_archives(source: str | os.PathLike) -> list[str] | None:
    """The archives that a path or a pattern such as 'shards/*.tar' names, sorted; None: it names a folder, or nothing.

    Raises:
        FileNotFoundError: a pattern that matches no archive.
    """
    path = os.fspath(source)
    if os.path.isfile(path) and path.lower().endswith(ARCHIVE_SUFFIXES):
        return [path]
    if os.path.lexists(path) or not has_magic(path):
        return None
    archives = sorted(name for name in glob(path, recursive=True) if name.lower().endswith(ARCHIVE_SUFFIXES))
    if not archives:
        raise FileNotFoundError(f"there is no archive ({', '.join(ARCHIVE_SUFFIXES[:3])}) that {shown(path)} matches")
    return archives


def list_members(archives: Sequence[str], suffixes: Sequence[str]) -> Found:
    """The audio files of archives, in the archives' order; of several, each name begins with its archive's.

    Raises:
        OSError, FileError: none of the archives can be read.
    """
    found = Found()
    prefixes = _prefixes(archives)
    last: Exception | None = None
    with ThreadPoolExecutor(min(_ARCHIVES_AT_ONCE, len(archives))) as pool:
        for archive, prefix, contents in zip(
            archives, prefixes, pool.map(lambda path: _read_contents(path, suffixes), archives), strict=True
        ):
            if isinstance(contents, Exception):
                last = contents
                found.left_out[archive] = str(contents)
                continue
            held, others = contents
            found.others += others
            found.members += [Member(prefix + name, archive, place) for name, place in held.members]
            for name, reason in held.left_out.items():
                where = f"{shown(archive)}: {shown(name)}" if name else shown(archive)
                found.left_out[prefix + name if name else archive] = f"{where} {reason}"
    if last is not None and not found.members:
        raise last
    return found


def _read_contents(path: str, suffixes: Sequence[str]) -> tuple[Contents, Counter[str]] | Exception:
    others: Counter[str] = Counter()
    kind = next(suffix for suffix in ARCHIVE_SUFFIXES if path.lower().endswith(suffix))
    try:
        return _CONTENTS[kind](path, _chooser(tuple(suffixes), others)), others
    except OSError as error:
        return type(error)(f"{shown(path)} cannot be read: {error.strerror or error}")
    except FileError as error:
        return error


def _chooser(suffixes: tuple[str, ...], others: Counter[str]) -> Callable[[str], bool]:
    """Tells whether a name has one of the suffixes, and counts other audio files."""

    def is_audio(name: str) -> bool:
        base = os.path.basename(name).lower()
        if base.endswith(suffixes) and base not in suffixes:
            return True
        suffix = os.path.splitext(base)[1]
        if suffix in SNDFILE_SUFFIXES + FFMPEG_SUFFIXES:
            others[suffix] += 1
        return False

    return is_audio


def _prefixes(archives: Sequence[str]) -> list[str]:
    """What the names of each archive's members begin with: nothing for a single one."""
    if len(archives) == 1:
        return [""]
    common = os.path.commonpath([os.path.dirname(os.path.abspath(each)) for each in archives])
    names = [PurePosixPath(os.path.relpath(each, common)) for each in archives]
    return [f"{name.with_suffix('')}/" for name in names]
