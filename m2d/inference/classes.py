"""Names of a classifier's classes."""

import csv
import io
from pathlib import Path

from ..utils.names import shown

_NAME_COLUMNS = ("display_name", "name", "label", "class")


def read_classes(path: Path, order: str = "auto") -> list[str]:
    """Names of classes in the order of a classifier's outputs.

    Args:
        path: a text file with a name per line, or a .csv with a column of names.
        order: order of a table's rows. `mid`: by the column mid as text; `index`: by the numbers in the column index, or as
            they stand where there is none; `auto`: by mid where there is such a column, else as `index`.

    Raises:
        ValueError: a file that is not UTF-8, a .csv without a column of names or the column mid that was asked for, or whose
            column index does not number the classes from 0.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{shown(path)}: class names in UTF-8 are expected: save it as UTF-8") from None
    if path.suffix.lower() != ".csv":
        return [line.strip() for line in text.splitlines() if line.strip()]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=_delimiter(text))
    columns = reader.fieldnames or []
    name = next((column for column in _NAME_COLUMNS if column in columns), None)
    there = f"there are {', '.join(columns) or 'none'}"
    if name is None:
        raise ValueError(f"{shown(path)}: none of the columns {', '.join(_NAME_COLUMNS)} ({there})")
    if order == "mid" and "mid" not in columns:
        raise ValueError(f"{shown(path)}: no column mid to order by ({there})")
    rows = list(reader)
    if order != "index" and "mid" in columns:
        rows.sort(key=lambda row: row["mid"])
    elif "index" in columns:
        rows = _by_index(rows, path)
    return [row[name] for row in rows]


def _delimiter(text: str) -> str:
    header = text.partition("\n")[0]
    return next((mark for mark in ";\t" if mark in header and "," not in header), ",")


def _by_index(rows: list[dict[str, str]], path: Path) -> list[dict[str, str]]:
    found = {row["index"].strip(): row for row in rows}
    wanted = [str(number) for number in range(len(rows))]
    missing = next((number for number in wanted if number not in found), None)
    if missing is not None:
        raise ValueError(f"{shown(path)}: its column index does not number the {len(rows)} classes from 0: there is no {missing}")
    return [found[number] for number in wanted]
