"""Names of files, and numbers of things, as they are shown."""

import os


def shown(path: str | os.PathLike) -> str:
    r"""A path on one line without what a terminal would obey: control characters as \x1b, bytes that are not UTF-8 as \xff."""
    text = os.fspath(path)
    return text if text.isprintable() else "".join(map(_escaped, text))


def counted(number: int, thing: str) -> str:
    """ "1 file", "2 files", "3 classes"."""
    ending = "" if number == 1 else "es" if thing.endswith("s") else "s"
    return f"{number} {thing}{ending}"


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of the name, as os.fsdecode keeps it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
