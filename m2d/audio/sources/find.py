"""Archives of audio files: which there are, and what is in them."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ...utils.addresses import check_protocols, is_address, public_reason
from ...utils.errors import FileError
from ...utils.names import shown
from ...utils.remote import file_system
from ..listing import FFMPEG_SUFFIXES, SNDFILE_SUFFIXES
from .addresses import addresses_in, lists_addresses, path_of
from .archive_file import StorageError, named
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
    """The archives that a path, a pattern such as 'shards/*.tar', an address of these, or a list of archives' addresses names.

    None: the source names a folder, a list of other files, or nothing.

    Raises:
        FileNotFoundError: a pattern that matches no archive.
        FileError: an address that names no archive, or cannot be asked what is there.
    """
    path = os.fspath(source)
    if is_address(path):
        return _at_address(path)
    if os.path.isfile(path) and _is_archive(path):
        return [path]
    if lists_addresses(path):
        addresses = list(addresses_in(path))
        return addresses if all(map(_is_archive, addresses)) else None
    if os.path.lexists(path) or not has_magic(path):
        return None
    return _matching(path, glob(path, recursive=True))


def _is_archive(path: str) -> bool:
    return _without_query(path).lower().endswith(ARCHIVE_SUFFIXES)


def _without_query(path: str) -> str:
    return urlsplit(path).path if is_address(path) else path


def _matching(pattern: str, found: Iterable[str]) -> list[str]:
    archives = sorted(filter(_is_archive, found))
    if not archives:
        raise FileNotFoundError(f"there is no archive ({', '.join(ARCHIVE_SUFFIXES[:3])}) that {named(pattern)} matches")
    return archives


def _at_address(address: str) -> list[str]:
    if not _is_archive(address):
        raise FileError(
            f"{named(address)}: only archives ({', '.join(ARCHIVE_SUFFIXES[:3])}) are read; "
            "name addresses of audio files in a list on this machine"
        )
    check_protocols({address.partition("://")[0].lower()})
    if not re.search(r"[*\[]", urlsplit(address).path):
        return [address]
    fs, path = file_system(address)
    try:
        found = [fs.unstrip_protocol(name) for name in fs.glob(path)]
    except Exception as error:  # each file system has its own
        raise FileError(f"{named(address)} cannot be listed ({public_reason(error, address)})") from error
    return _matching(address, found)


def list_members(archives: Sequence[str], suffixes: Sequence[str]) -> Found:
    """The audio files of archives, in the archives' order; of several, each name begins with its archive's.

    Raises:
        OSError, FileError: none of the archives can be read; or one cannot be fetched, which may be otherwise the next time.
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
                found.left_out[named(archive)] = str(contents)
                continue
            held, others = contents
            found.others += others
            found.members += [Member(prefix + name, archive, place) for name, place in held.members]
            for name, reason in held.left_out.items():
                where = f"{named(archive)}: {shown(name)}" if name else named(archive)
                found.left_out[prefix + name if name else named(archive)] = f"{where} {reason}"
    if last is not None and not found.members:
        raise last
    return found


def _read_contents(path: str, suffixes: Sequence[str]) -> tuple[Contents, Counter[str]] | Exception:
    others: Counter[str] = Counter()
    kind = next(suffix for suffix in ARCHIVE_SUFFIXES if _without_query(path).lower().endswith(suffix))
    try:
        return _CONTENTS[kind](path, _chooser(tuple(suffixes), others)), others
    except OSError as error:
        return type(error)(f"{named(path)} cannot be read: {error.strerror or error}")
    except FileError as error:
        return error
    except StorageError as error:
        raise FileError(str(error)) from None


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
    paths = [os.path.abspath(path_of(each) if is_address(each) else each) for each in archives]
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [PurePosixPath(os.path.relpath(path, common)) for path in paths]
    return [f"{name.with_suffix('')}/" for name in names]
