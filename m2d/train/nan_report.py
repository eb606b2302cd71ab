"""What a run leaves that stopped over a number that is not finite: its last losses, and the files they came from."""

import logging
from pathlib import Path

import torch
import torch.distributed as dist

from ..checkpoint.file import save_atomically
from ..data.dataset import AudioDataset
from .trainer import LossMeter, NonFiniteLoss

REPORT = "nan_report.pt"

logger = logging.getLogger("m2d")


def report_bad_numbers(folder: Path, update: int, meter: LossMeter, data: AudioDataset, error: NonFiniteLoss) -> None:
    """Write nan_report.pt and say what to try; the checkpoints stay as they are. To be called on every rank.

    The report is a dict: `update` (updates done), `error`, `files` (names of the batch), and `losses` `[steps, terms]`
    and `gradient_norms` `[updates]` since the report before.
    """
    step, indices = meter.suspects()
    mine = (step, data.names(indices))
    everyone: list = [mine]
    if dist.is_initialized():
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        if dist.get_rank():
            return
    first = min(step for step, _ in everyone)  # what comes after it is bad because the weights are
    files = [name for step, names in everyone if step == first for name in names]
    report = {
        "update": update,
        "error": str(error),
        "files": files,
        "losses": torch.stack(meter.recent).tolist(),
        "gradient_norms": torch.stack(meter.norms).tolist() if meter.norms else [],
    }
    try:
        save_atomically(report, folder / REPORT)
    except (OSError, RuntimeError) as failed:
        logger.error("%s could not be written: %s", folder / REPORT, failed)
    logger.error(
        "stopped: a loss or gradient is no finite number any more, within the last %d steps before update %d. %s holds the "
        "losses, the gradient norms and the batch's %d files. Look whether a file holds NaN (python -m util.check_data); "
        "once it is mended, the same command with --auto_resume goes on from the last checkpoint, which is good. "
        "If the data are sound, go on in another folder with --bf16 or a lower --blr: "
        "--resume %s --force_start_epoch -1 --output_dir …",
        len(meter.recent),
        update + 1,
        folder / REPORT,
        len(files),
        folder / "last.pth",
    )
