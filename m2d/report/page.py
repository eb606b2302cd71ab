"""One HTML file that needs nothing else: styles, scripts and data are inside, and it may load nothing from anywhere."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..utils.atomic_file import write_text

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{program}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main id="page"><noscript>This page draws its curves and maps by a script: allow it to run.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
#: Characters that could end a script element, or that JavaScript takes for the end of a line.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def write_page(path: Path, title: str, data: Mapping[str, Any], scripts: Sequence[str], program: str) -> None:
    """Write a page.

    All text of others (names, labels, settings) is in `data`, which scripts put into text nodes alone; the policy lets run
    no script but these.

    Args:
        path: the file to write.
        title: of the page.
        data: what the scripts draw: plain values.
        scripts: files of this package, in their order.
        program: the command, for `outputs.drawn_by`.

    Raises:
        OSError: it cannot be written.
    """
    script = "\n" + "\n".join(_resource(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "media-src data: file: 'self'; base-uri 'none'; form-action 'none'"
    )
    text = _TEMPLATE.format(
        policy=policy,
        program=html.escape(program),
        title=html.escape(title),
        style=_resource("page.css"),
        data=as_json(data),
        script=script,
    )
    write_text(path, text)


def as_json(data: Mapping[str, Any]) -> str:
    """JSON that is safe in a script element, whatever texts it holds; names that are not UTF-8 are escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escaped in _ESCAPED.items():
        text = text.replace(character, escaped)
    return text.encode(errors="backslashreplace").decode()


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def relative_address(path: Path, page: Path) -> str:
    """The address of a file as seen from a page's folder, every character quoted that is not plain."""
    from urllib.parse import quote

    relative = os.path.relpath(path.absolute(), page.absolute().parent)
    return "./" + quote(os.fsencode(relative), safe="/")
