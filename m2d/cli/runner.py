"""How the command-line programs report: a log on stderr, one line for what the user can mend."""

import logging
from collections.abc import Callable

logger = logging.getLogger("m2d")


def run_program(work: Callable[[], int | None]) -> int:
    """Do a program's work; returns its exit status: what `work` returns (None: 0), or 2 after an error, shown in one line."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        return work() or 0
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 2
