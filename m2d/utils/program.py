"""What all command-line programs share: the parser, the log on stderr, one-line errors, exit statuses. Must not import torch."""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from .names import shown

EXIT_USAGE = 2  # something that the user can fix: a flag, a file, a list
EXIT_BAD_NUMBERS = 3  # a training run's loss or gradient was not finite
EXIT_NOT_SAVED = 74  # a run ended but could not write its last checkpoint (EX_IOERR of sysexits.h)
EXIT_REQUEUE = 75  # a run was asked to stop, or lost a rank: --auto_resume resumes it (EX_TEMPFAIL of sysexits.h)
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE
_UNKNOWN = "unrecognized arguments: "
_MISSING = "the following arguments are required: "

logger = logging.getLogger("m2d")


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with one-line errors that suggest the right flag. `--batch-size` is understood as `--batch_size`."""

    def __init__(self, prog: str | None = None, **options: Any):
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog or os.path.basename(sys.argv[0]), allow_abbrev=False, **options)
        self._words: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        self._words = [self._with_underscores(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self._words, namespace)

    def _with_underscores(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        underscored = "--" + flag[2:].replace("-", "_")
        is_variant = flag.startswith("--") and flag not in self._option_string_actions
        return underscored + equals + value if is_variant and underscored in self._option_string_actions else word

    def error(self, message: str) -> NoReturn:
        if message.startswith(_UNKNOWN):
            message = self._explain_unknown(message.removeprefix(_UNKNOWN))
        elif message.startswith(_MISSING):  # a misspelt flag, rather than one that was forgotten
            known = self._option_string_actions
            flags = [word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"]
            unknown = next((flag for flag in flags if flag not in known and did_you_mean(flag, known)), None)
            message = self._explain_unknown(unknown) if unknown else message
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message} (--help lists the flags)\n")

    def _explain_unknown(self, words: str) -> str:
        flag = words.split()[0].partition("=")[0]
        if not flag.startswith("-"):
            return f"{words}: not expected here"
        return f"there is no flag {flag}{did_you_mean(flag, self._option_string_actions)}"


def did_you_mean(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    """ "; did you mean X?" where a known word is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class _LevelFormatter(logging.Formatter):
    """Messages as they are; warnings and errors with their level in front."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


def open_closed_streams() -> None:
    """Connect standard streams that are closed to the null device: else the next files opened get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))


def start_log() -> None:
    """Send the log to stderr, unless a handler is there already."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LevelFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def explained(error: Exception) -> str:
    """What is wrong, in words: for an error of the system the file and the reason, without its number."""
    if not (isinstance(error, OSError) and error.strerror and isinstance(error.filename, (str, bytes, os.PathLike))):
        return str(error)
    name = shown(os.fsdecode(error.filename))
    return f"there is no file or folder {name}" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"


def run_program(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Do a program's work and return its exit status: what `work` returns (None: 0).

    An error that the user can fix (OSError, ValueError) is logged in one line and gives 2, Ctrl-C logs `interrupted` and gives
    130, a reader of our output that has closed it (`| head`) gives 141.
    """
    open_closed_streams()
    start_log()
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit raises again
        return EXIT_BROKEN_PIPE
    except (OSError, ValueError) as error:
        logger.error("%s", explained(error))
        return EXIT_USAGE
    except KeyboardInterrupt:
        logger.error("%s", interrupted)
        return EXIT_INTERRUPTED
