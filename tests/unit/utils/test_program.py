"""What all programs share: flags in any spelling, one-line errors, exit statuses."""

import logging
import subprocess
import sys

import pytest

from m2d.utils.program import ArgumentParser, did_you_mean, run_program


@pytest.fixture
def parser():
    parser = ArgumentParser("m2d test")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--out", "--output_dir")
    parser.add_argument("--dashed-flag")
    return parser


@pytest.mark.parametrize("words", (["--batch_size", "3"], ["--batch-size", "3"], ["--batch-size=3"]))
def test_dashes_are_underscores(parser, words):
    assert parser.parse_args(words).batch_size == 3
    assert parser.parse_intermixed_args(["a", *words, "b"]).batch_size == 3


def test_flags_with_dashes_of_their_own_and_values_stay(parser):
    args = parser.parse_args(["--dashed-flag", "x", "--out=--a-b", "a-b", "--", "--not-a-flag"])
    assert (args.dashed_flag, args.out, args.files) == ("x", "--a-b", ["a-b", "--not-a-flag"])


@pytest.mark.parametrize(
    "words, message",
    (
        (["--batchsize", "3"], "there is no flag --batchsize; did you mean --batch_size?"),
        (["--bacth-size=3"], "there is no flag --bacth-size; did you mean --batch_size?"),
        (["--batch", "3"], "there is no flag --batch"),
        (["--zzz"], "there is no flag --zzz (--help lists the flags)"),
        (["--batch_size", "x"], "argument --batch_size: invalid int value: 'x'"),
    ),
)
def test_a_wrong_flag_gives_one_line(parser, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.startswith("m2d test: error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    (
        (["--weigths", "x"], "there is no flag --weigths; did you mean --weights?"),
        (["--weight=x"], "there is no flag --weight; did you mean --weights?"),
        ([], "the following arguments are required: --weights"),
        (["--zzz", "x"], "the following arguments are required: --weights"),
    ),
)
def test_a_misspelt_required_flag_is_suggested(words, message, capsys):
    parser = ArgumentParser("m2d test")
    parser.add_argument("--weights", required=True)
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert message in capsys.readouterr().err


def test_errors_of_the_system_are_shown_in_words(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none.txt", tmp_path / "file" / "below"):
        assert run_program(lambda path=path: path.read_text() and None) == 2
    assert [record.message for record in caplog.records] == [
        f"there is no file or folder {tmp_path / 'none.txt'}",
        f"{tmp_path / 'file' / 'below'}: Not a directory",
    ]


def test_suggestions():
    assert did_you_mean("embd", {"embed": 1, "tag": 2}) == "; did you mean embed?"
    assert did_you_mean("zzz", ["embed", "tag"]) == ""


@pytest.mark.parametrize("error", (ValueError("a flag"), FileNotFoundError("a file")))
def test_errors_that_the_user_can_fix(error, caplog):
    def work():
        raise error

    assert run_program(work) == 2
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.ERROR, str(error))]


def test_other_errors_are_ours_and_are_raised():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 / 0)


def test_exit_statuses(caplog):
    def interrupt():
        raise KeyboardInterrupt

    assert run_program(lambda: None) == 0 and run_program(lambda: 1) == 1
    assert run_program(interrupt, interrupted="start it again") == 130 and "start it again" in caplog.text


def test_the_log_and_a_closed_pipe():
    code = """
import logging, sys
from m2d.utils.program import run_program

def work():
    logging.getLogger("m2d").info("a figure")
    logging.getLogger("m2d").warning("a risk")
    for _ in range(100_000):
        print("a line")

sys.exit(run_program(work))
"""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -c '{code}' | head -1"], capture_output=True, text=True
    )
    assert done.returncode == 141 and done.stdout == "a line\n" and done.stderr == "a figure\nwarning: a risk\n"


WITHOUT_STREAMS = """
import os, sys
from m2d.utils.parallel import Progress
from m2d.utils.program import run_program

def work():
    with open(sys.argv[1], "w") as file, Progress(1, "file") as progress:
        print("words that no one reads")
        progress.update()
        for number in (1, 2):
            os.write(number, b"words of a library")
        file.write("result")

sys.exit(run_program(work))
"""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_program_works_without_standard_streams(closed, tmp_path):
    """Whose numbers are not those of the files it writes."""
    command = [
        "sh",
        "-c",
        f'exec "$@" {closed}',
        "sh",
        sys.executable,
        "-W",
        "error",
        "-c",
        WITHOUT_STREAMS,
        str(tmp_path / "out"),
    ]
    found = subprocess.run(command, capture_output=True)
    assert found.returncode == 0 and b"ResourceWarning" not in found.stderr
    assert (tmp_path / "out").read_text() == "result"
