"""README and docs: every m2d command that they show exists, with the flags that they give it."""

import re
import sys
from pathlib import Path

import pytest

from m2d.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
NAMED = ("README.md", "CONTRIBUTING.md", "Guide_app.md", "data/README.md", "weights/README.md")
PAGES = [*(ROOT / name for name in NAMED), *ROOT.glob("docs/**/*.md")]


def shown_commands():
    """(command, words) of each `m2d …` in shell blocks and tables."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        blocks = "\n".join(re.findall(r"^ *```sh\n(.*?)^ *```", text, re.M | re.S))
        lines = re.findall(r"^ *(?:\S+=\S+ )*(?:.*-m )?m2d (.*)$", blocks, re.M) + re.findall(r"`m2d ([^`]+)`", text)
        found += [(line.split()[0], line.split()[1:]) for line in lines]
    return found


def help_of(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    try:
        cli.main([*words, "--help"])
    except SystemExit as stop:
        assert stop.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", sorted({name for name, _ in shown_commands() if name.isalpha() and name.islower()}))
def test_a_command_and_its_flags_exist(name, capsys, monkeypatch):
    assert name in cli.COMMANDS
    uses = [words for command, words in shown_commands() if command == name]
    help_text = help_of([name], capsys, monkeypatch)
    if name == "train":
        help_text += "".join(help_of(["train", variant], capsys, monkeypatch) for variant in ("m2d", "mae", "as", "s"))
    known = set(re.findall(r"--\w+", help_text)) | {"--help", "--name"}
    for words in uses:
        flags = {re.match(r"--\w+", word)[0] for word in words if re.match(r"--\w", word)}
        assert flags <= known, f"{name}: {flags - known}"


def test_there_are_commands():
    assert {"embed", "probe", "convert", "train", "check", "export"} <= {name for name, _ in shown_commands()}
