"""The command m2d: its table, its help, what it starts."""

import importlib
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_runs import program_of

from m2d.cli import main as cli
from m2d.cli import train
from m2d.train import pretrain

ROOT = Path(__file__).resolve().parents[3]


def m2d(*words, **options):
    return subprocess.run([sys.executable, "-m", "m2d", *words], cwd=ROOT, capture_output=True, text=True, **options)


def test_help_is_instant_and_names_every_command_in_a_line():
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = m2d()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert done.returncode == 0 and lines == list(cli.COMMANDS)
    assert m2d("--help").stdout == done.stdout
    assert min(seconds) < 0.3, "seconds of CPU time"


def test_help_imports_the_standard_library_alone():
    code = """
import sys
before = set(sys.modules)
from m2d.cli.main import main
main([])
print(*{name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "m2d"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_a_program_with_help(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    try:
        status = cli.main([name, "--help"])
    except SystemExit as stop:
        status = stop.code
    shown = "".join(capsys.readouterr())
    assert status in (0, None) and (name in shown or name == "convert")
    assert callable(importlib.import_module(cli.COMMANDS[name][0], "m2d").main)


def test_an_unknown_command_gets_a_suggestion(capsys):
    assert cli.main(["embd"]) == 2
    assert capsys.readouterr().err == "m2d: error: there is no command embd; did you mean embed?\n"
    assert cli.main(["zzz"]) == 2
    assert capsys.readouterr().err == "m2d: error: there is no command zzz; m2d alone lists the commands\n"


def test_a_package_that_is_not_installed_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest"])
    monkeypatch.setitem(sys.modules, "m2d.cli.pack", None)
    with pytest.raises(ModuleNotFoundError):  # ours: a mistake of the project, not of the installation
        cli.main(["pack"])
    monkeypatch.delitem(sys.modules, "m2d.cli.pack")
    monkeypatch.delitem(sys.modules, "m2d.data.clip_list", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["pack"]) == 2
    assert capsys.readouterr().err == "m2d pack: error: pyarrow is not installed: pip install 'm2d-audio[train]'\n"


@pytest.mark.parametrize(
    "words, program, rest",
    (
        ("--epochs 3", "train_audio", ["--epochs", "3"]),
        ("m2d --epochs 3", "train_audio", ["--epochs", "3"]),
        ("mae", "mae_train_audio", []),
        ("as --bf16", "audioset.train_as", ["--bf16"]),
        ("s", "speech.train_speech", []),
        ("clap-only", "clap.clap_only", []),
        ("clap --sem_mode 1", "clap.train_clap", ["--sem_mode", "1"]),
    ),
)
def test_train_runs_the_published_programs(words, program, rest, monkeypatch):
    started = []
    monkeypatch.setattr(pretrain, "main", lambda recipe, argv: started.append((recipe, argv)) or 5)
    with pytest.raises(SystemExit) as stop:
        train.main(words.split())
    found, argv = started[0]
    assert stop.value.code == 5 and argv == rest
    assert found == replace(program_of(program), prog=found.prog) and found.prog.startswith("m2d train ")


def test_train_refuses_an_unknown_variant(capsys):
    assert train.main(["mea", "--epochs", "3"]) == 2
    assert capsys.readouterr().err == "m2d train: error: mea: choose from m2d, mae, as, s, clap, clap-only; did you mean mae?\n"


def test_ctrl_c_during_the_imports_is_one_line(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupt)
    assert cli.main(["embed", "x.wav"]) == 130
    assert capsys.readouterr().err == "m2d embed: interrupted\n"
