"""Audio files in an archive: their names, and where their bytes are."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple, Protocol

from ...utils.addresses import is_address, public_name
from ...utils.errors import FileError
from .archive_file import StorageError, named, read_range

#: The largest file that is read from an archive: it is held in memory, and so is what a compressed one becomes.
MOST_BYTES = 1 << 30


class Place(Protocol):
    """Where the bytes of an audio file are; small, so that millions can be listed and sent to workers.

    Attributes:
        path: the file that they are in.
        in_turn: read by one process in the order of the list, which saves reading what lies before it again.
    """

    @property
    def path(self) -> str: ...

    @property
    def in_turn(self) -> bool: ...

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            OSError: they cannot be read.
            ValueError: they are damaged: words that follow the file's name.
            StorageError: the archive cannot be fetched, so that others cannot either.
        """
        ...


class FileRange(NamedTuple):
    """Bytes of an archive."""

    path: str
    begin: int
    size: int

    in_turn = False

    def read(self) -> bytes:
        """As `Place.read`."""
        return read_range(self.path, self.begin, self.size)


class InMemory(NamedTuple):
    """Bytes that were read before, or the error of reading them, which `read` raises."""

    path: str
    content: bytes | OSError | ValueError | StorageError

    in_turn = False

    def read(self) -> bytes:
        """As `Place.read`."""
        if isinstance(self.content, bytes):
            return self.content
        raise self.content


class Member(NamedTuple):
    """An audio file in an archive; `name`: its path there, or with several archives below a folder named after its own."""

    name: str
    archive: str
    place: Place

    @property
    def where(self) -> str:
        """Its name in messages."""
        return f"{public_name(self.archive) if is_address(self.archive) else self.archive}: {self.name}"


@dataclass
class Contents:
    """What an archive holds: members in the order of their names (parquet: of the rows); what cannot be read, with reasons.

    The name of the archive as a whole is empty.
    """

    members: list[tuple[str, Place]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, place: Place, size: int) -> None:
        """Take a member whose name and size can be used; otherwise leave it out."""
        if size > MOST_BYTES:
            self.leave_out(name, f"has {size >> 20} MiB; at most {MOST_BYTES >> 20} are read from an archive: unpack it")
        elif (plain := plain_name(name)) is None:
            self.leave_out(name, "has a name that leads out of its archive")
        else:
            self.members.append((plain, place))

    def leave_out(self, name: str, reason: str) -> None:
        """Remember what cannot be read; `reason`: words that follow its name."""
        self.left_out.setdefault(name, reason)

    def sort(self) -> None:
        """Put the members in the order in which their files in a folder would come."""
        self.members.sort(key=lambda member: member[0])


def plain_name(name: str) -> str | None:
    """A member's name as a relative path; None where it is none, or has `..` in it."""
    if not name or name.startswith("/") or "\0" in name:
        return None
    parts = PurePosixPath(name).parts
    return None if not parts or ".." in parts else "/".join(parts)


def not_readable(path: str, reason: object) -> FileError:
    """The error of an archive that cannot be used at all."""
    return FileError(f"{named(path)}: {reason}")
