"""What a run writes: reports, figures of epochs, checkpoints, and their hand-off to evaluation."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ..run.checkpoint_writer import CheckpointWriter
from ..run.evar import evaluate_by_evar
from ..run.log import RunLog
from .device import peak_memory
from .distributed.collectives import from_rank0
from .metrics import Throughput
from .programs import Program
from .trainer import Trainer, TrainState

logger = logging.getLogger("m2d")


class RunOutput:
    """Writes a run's logs and checkpoints; only rank 0 does, and all ranks call its methods.

    Args:
        program: the training program.
        trainer: the model in training.
        folder: the run's folder.
        start: where the run starts, in epochs: what an interrupted run logged beyond that is removed.
    """

    def __init__(self, program: Program, trainer: Trainer, folder: Path, start: float):
        self.folder, self._program = folder, program
        self._settings = trainer.settings.output
        is_main = trainer.launch.is_main
        self._log = RunLog(folder if is_main else None, self._settings.log_dir, start)
        self._writer = CheckpointWriter(folder, self._settings.save_minutes, self._settings.keep_last) if is_main else None

    def announce(self, state: TrainState) -> None:
        """Log what is trained, on what, and from where."""
        trainer, sampler, run = state.trainer, state.trainer.sampler, state.trainer.settings.run
        logger.info("output folder: %s", self.folder)
        logger.info(
            "%s, %.1f M trained parameters, %s on %s; %d samples an epoch, %d steps of %d clips, %d updates of %d; peak lr %.3g",
            trainer.settings.model.model,
            sum(p.numel() for p in trainer.trained) / 1e6,
            str(trainer.precision).removeprefix("torch."),
            trainer.launch.device,
            sampler.samples,
            sampler.steps_per_epoch,
            sampler.batch_size * sampler.world_size,
            sampler.updates_per_epoch,
            sampler.per_update,
            trainer.peak_lr,
        )
        logger.info("TensorBoard: tensorboard --logdir %s (its steps are 1000 x epochs)", self._settings.log_dir or self.folder)
        if state.updates:
            logger.info("starting at epoch %.3f of %d", state.position, run.epochs)

    def report(self, state: TrainState, losses: Mapping[str, float], throughput: Throughput) -> None:
        """Log the mean losses, the rates and the speed since the last report; the state counts the update afterwards."""
        trainer, sampler = state.trainer, state.trainer.sampler
        epoch, done = divmod(state.updates, sampler.updates_per_epoch)
        done = (done + 1) * sampler.accum_iter
        rate, waiting, left = throughput.report((trainer.last_epoch - epoch) * sampler.steps_per_epoch - done)
        line = f"epoch {epoch + 1}/{trainer.settings.run.epochs}  step {done}/{sampler.steps_per_epoch}  "
        line += f"loss {losses['loss']:.4f}  lr {trainer.lr:.2e}  {rate:.0f} clips/s"
        if trainer.launch.device.type == "cuda":
            memory = peak_memory(trainer.launch.device) / 2**30
            line += f"  mfu {trainer.utilisation(rate):.0%}  memory {memory:.1f} GiB"
        logger.info("%s  data-wait %.0f%%  to go %s", line, 100 * waiting, left)
        scalars = {f"train_{name}": value for name, value in losses.items()} | {"lr": trainer.lr}
        if trainer.has_ema_target:
            scalars["ema_decay"] = trainer.target_decay(state.updates)
        self._log.scalars(_step_of(epoch + done / sampler.steps_per_epoch), **scalars)

    def end_epoch(self, state: TrainState, figures: Mapping[str, float]) -> None:
        """Write an epoch's line of log.txt, and to TensorBoard what reports have not written there."""
        trainer = state.trainer
        rates = {"train_lr": trainer.lr}
        if trainer.has_ema_target:
            rates["train_ema_decay"] = trainer.target_decay(state.updates - 1)
        self._log.epoch(**figures, **rates, epoch=state.epoch)
        others = {name: value for name, value in figures.items() if not name.startswith("train_loss")}
        self._log.scalars(_step_of(state.epoch), **others)

    def save(self, state: TrainState, epoch: int | None = None, wait: bool = False, **how) -> None:
        """Write last.pth and, with an epoch, checkpoint-{epoch}.pth, in the background unless `wait`."""
        if self._writer is not None or state.trainer.is_sharded:
            contents = state.state_dict()
            if self._writer is not None:
                self._writer.save(contents, epoch, wait, **how)

    def save_checkpoint(self, state: TrainState, epoch: int, is_last: bool) -> None:
        """Write checkpoint-{epoch}.pth, start its evaluation, and do what the program adds to checkpoints."""
        is_evaluated = epoch >= self._settings.eval_after and not is_last
        quick_eval = partial(evaluate_by_evar, "quick_eval.sh", wait=False) if is_evaluated else None
        self.save(state, epoch, wait=is_last, then=quick_eval)
        if self._writer is not None:
            self._program.at_checkpoint(state.trainer, self.checkpoint(epoch))

    def save_position(self, state: TrainState) -> None:
        """Write last.pth at the present update, once its numbers are known to be finite."""
        if state.meter.unreported:
            state.meter.report(state.trainer.may_overflow())
        self.save(state, wait=True)

    def save_is_due(self, state: TrainState) -> bool:
        """Whether it is time for last.pth; the same on all ranks where all take part in saving."""
        if state.trainer.is_sharded:
            return from_rank0(state.trainer.launch, lambda: self._writer.due())
        return self._writer is not None and self._writer.due()

    def checkpoint(self, epoch: int) -> Path:
        """The path of a numbered checkpoint."""
        return self.folder / f"checkpoint-{epoch}.pth"

    def close(self) -> bool:
        """Wait for what is being written; returns whether the last checkpoint was written."""
        if self._writer is not None:
            self._writer.finish()
        self._log.close()
        return self._writer is None or not self._writer.failed


def _step_of(epochs: float) -> int:
    """TensorBoard's step at a position in epochs."""
    return int(1000 * epochs)
