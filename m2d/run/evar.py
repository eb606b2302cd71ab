"""Hand a checkpoint to EVAR by the project's quick_eval.sh and all_eval.sh."""

import logging
import os
import subprocess
from pathlib import Path

from ..utils.errors import UserError
from ..utils.own_files.own_file import open_own

#: The project's own folder, where its scripts are; scripts of the working folder are not run.
PROJECT = Path(__file__).resolve().parents[2]
#: Variables of torchrun that would make a program started from here take itself for one of the run's processes.
_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_")

logger = logging.getLogger("m2d")


def evaluate_by_evar(script: str, checkpoint: Path, wait: bool) -> None:
    """Start `quick_eval.sh` or `all_eval.sh` for a checkpoint; training continues whether it succeeds or not.

    The script is the project's own, beside the m2d package, wherever the working folder is. Without EVAR in the project's
    folder (util/setup_evar.sh) nothing is started.
    """
    path = PROJECT / script
    if not (path.is_file() and (PROJECT / "evar").is_dir()):
        return
    log = checkpoint.with_suffix(".eval.txt")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER)}
    try:
        with open_own(log, "wb") as output:
            command = ["bash", str(path), str(checkpoint.resolve())]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
        logger.info("%s %s: see %s", script, checkpoint, log)
        if wait and process.wait():
            logger.warning("%s ended with exit status %d: see %s", script, process.returncode, log)
    except (OSError, UserError) as error:
        logger.warning("%s could not be started: %s", script, error)
