"""Audio files at addresses (https, s3 and what else fsspec reads), named by a list."""

import csv
import os
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ...utils.addresses import check_protocols, public_name, public_reason
from ...utils.errors import FileError
from ...utils.names import shown
from ...utils.remote import read_whole
from .member import MOST_BYTES, Contents, plain_name

LIST_SUFFIXES = (".csv", ".txt")
_COLUMN = "file_name"


class Address(NamedTuple):
    """A file at an address; `path` is the whole address, which may hold a secret."""

    path: str

    in_turn = False

    def read(self) -> bytes:
        """As `Place.read`."""
        try:
            content = read_whole(self.path, MOST_BYTES)
        except FileNotFoundError:
            raise FileNotFoundError(0, "there is no such file") from None
        except Exception as error:  # each file system has its own
            raise OSError(0, public_reason(error, self.path)) from None
        if content is None:
            raise ValueError(f"has more than {MOST_BYTES >> 20} MiB, which are not read from an address")
        return content


def is_list(source: str | os.PathLike) -> bool:
    """Whether a source is a list: a file named .csv or .txt."""
    return os.fspath(source).lower().endswith(LIST_SUFFIXES) and os.path.isfile(source)


def list_contents(path: str | os.PathLike) -> Contents:
    """The files of a list of addresses: a column file_name of a CSV, or a line each.

    They are named by their addresses' paths below the folder that all share.

    Raises:
        FileError: the list cannot be read, is empty, or has a row that is no address.
        UserError: fsspec, or what it needs for these addresses, is not installed.
    """
    rows = list(addresses_in(path))
    if not rows:
        raise FileError(f"{shown(path)}: the list is empty")
    check_protocols({urlsplit(address).scheme for address in rows})
    names = [path_of(address) for address in rows]
    common = os.path.commonpath([os.path.dirname(name) for name in names]) if all(names) else ""
    contents = Contents()
    for address, name in zip(rows, names, strict=True):
        plain = plain_name(os.path.relpath(name, common) if common else name)
        if plain is None:
            contents.leave_out(public_name(address), "has a name that leads out of its folder")
        else:
            contents.members.append((plain, Address(address)))
    contents.sort()
    return contents


def path_of(address: str) -> str:
    """Host and path of an address, as a relative path."""
    parts = urlsplit(address)
    return f"{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}".strip("/")


def lists_addresses(source: str | os.PathLike) -> bool:
    """Whether a source is a list whose first row is an address."""
    if not is_list(source):
        return False
    try:
        return next(addresses_in(source), None) is not None
    except FileError:
        return False


def addresses_in(path: str | os.PathLike) -> Iterator[str]:
    """The addresses of a list.

    Raises:
        FileError: it cannot be read, or has a row that is no address.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file) if os.fspath(path).lower().endswith(".csv") else ([line.strip()] for line in file)
            column = 0
            for number, row in enumerate(rows, 1):
                if number == 1 and _COLUMN in row:
                    column = row.index(_COLUMN)
                elif any(row):
                    address = row[column] if column < len(row) else ""
                    if "://" not in address:
                        raise FileError(
                            f"{shown(path)} row {number}: {shown(address)!r} is no address such as https://… or s3://…"
                        )
                    yield address
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FileError(f"{shown(path)}: cannot be read as a list ({error})") from None
