"""Several lists in one flag: "a.pack:2,b.pack" names two, and a's clips come twice as often as b's."""

import math
import os
from typing import NamedTuple

from ...utils.addresses import is_address
from ...utils.errors import UserError


class NamedList(NamedTuple):
    """A list or pack of clips, and how often each of its clips comes, compared with those of other lists."""

    path: str
    weight: float = 1.0


def split_lists(text: str) -> list[NamedList]:
    """The lists that a flag names, separated by commas, each with `:weight` or without.

    Commas and colons in names are recognised by the files that exist: the longest piece that is the name of one,
    with a weight or without, is taken. Addresses end at the next comma; a number that follows their last colon,
    but for a port, is a weight.

    Raises:
        UserError: a name is empty, or a weight no number above 0.
    """
    pieces = text.split(",")
    lists, begin = [], 0
    while begin < len(pieces):
        found, end = _longest(pieces, begin)
        if not found.path:
            raise UserError(f"{text}: a name is missing at one of its commas")
        lists.append(found)
        begin = end
    return lists


def _longest(pieces: list[str], begin: int) -> tuple[NamedList, int]:
    """The list that begins with a piece, and the piece behind it; one that does not exist ends at the next comma."""
    for end in range(len(pieces), begin, -1):
        text = ",".join(pieces[begin:end])
        if os.path.lexists(text):
            return NamedList(text), end
        path, _, weight = text.rpartition(":")
        if path and "," not in weight and os.path.lexists(path):
            return NamedList(path, _weight(weight, text)), end
    path, colon, weight = pieces[begin].rpartition(":")
    if is_address(path):
        has_weight = _is_number(weight) and "/" in path.partition("://")[2]  # https://host:8000 has a port
        return (NamedList(path, _weight(weight, pieces[begin])) if has_weight else NamedList(pieces[begin])), begin + 1
    return NamedList(path if colon and _is_number(weight) else pieces[begin]), begin + 1


def _weight(text: str, whole: str) -> float:
    if not _is_number(text) or not 0 < float(text) < math.inf:
        raise UserError(f"{whole}: a weight of {text!r}, expected a number above 0")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
