"""clap/README.md: its commands are understood by the programs that they name."""

import re
import shlex
from pathlib import Path

import pytest
from small_runs import CLAP, CLAP_ONLY, parser_of, program_of, settings_of

from m2d.cli import captions
from m2d.train.checks import check

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "clap/README.md").read_text(), re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "-m clap." in line])
def test_training_commands_are_understood(line, tmp_path, monkeypatch):
    words = shlex.split(line)
    program = words[words.index("-m") + 1]
    flags = words[words.index(program) + 1 :]
    settings = settings_of(program, flags)
    monkeypatch.chdir(tmp_path)
    lists = settings.data.csv_main
    Path(lists).parent.mkdir(parents=True, exist_ok=True)
    Path(lists).write_text("file_name\na.npy\n")
    check(settings, program_of(program).families)
    program_of(program).check(settings)


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("m2d ")])
def test_caption_commands_are_understood(line):
    name, *flags = shlex.split(line)[1:]
    assert name == "captions" and captions.make_parser().parse_args(flags).out.suffix == ".safetensors"


def test_every_flag_that_the_page_names_is_there():
    known = set(captions.make_parser()._option_string_actions)
    for program in (CLAP, CLAP_ONLY):
        known |= set(parser_of(program)._option_string_actions)
    text = (ROOT / "clap/README.md").read_text()
    assert {flag for flag in re.findall(r"--\w+", text) if flag != "--nproc_per_node"} <= known
    assert {name for line in COMMANDS for name in re.findall(r"clap\.\w+", line)} == {CLAP, CLAP_ONLY}
