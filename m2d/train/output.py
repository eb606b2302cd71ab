"""What a run writes: reports, figures of epochs, checkpoints, and their hand-off to evaluation."""

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from ..data.dataset import AudioDataset
from ..run.checkpoint_writer import CheckpointWriter
from ..run.evar import evaluate_by_evar
from ..run.log import RunLog
from .cost import run_seconds, step_memory
from .device import peak_memory, synchronize, total_memory
from .distributed.collectives import from_rank0, run_on_all_ranks
from .metrics import Throughput
from .monitoring.trackers import open_trackers
from .programs import Program
from .trainer import Trainer, TrainState

T = TypeVar("T")

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
        self.folder, self._program, self._began = folder, program, time.monotonic()
        self._settings = trainer.settings.output
        is_main = trainer.launch.is_main
        names = self._settings.tracker
        values = trainer.settings.as_dict()
        trackers = run_on_all_ranks(trainer.launch, lambda: open_trackers(names, values, folder) if is_main else [])
        tensorboard = self._settings.log_dir if "tensorboard" in names else None
        self._log = RunLog(folder if is_main else None, tensorboard, start, trackers)
        self._writer = CheckpointWriter(folder, self._settings.save_minutes, self._settings.keep_last) if is_main else None

    def announce(self, state: TrainState, data: AudioDataset) -> None:
        """Log what is trained, on what, and from where; warn where memory or a day would not be enough."""
        trainer, sampler, run = state.trainer, state.trainer.sampler, state.trainer.settings.run
        clips, samples = len(data.clips), len(data)
        repeated = f"{clips:,} clips, repeated to {samples:,} (--min_ds_size 0: not)" if samples > clips else f"{clips:,} clips"
        logger.info("output folder: %s", self.folder)
        logger.info(
            "%s, %.1f M trained parameters, %s on %s; an epoch has %s: %d steps of %d clips, %d updates of %d; peak lr %.3g",
            trainer.settings.model.model,
            sum(p.numel() for p in trainer.trained) / 1e6,
            str(trainer.precision).removeprefix("torch."),
            trainer.launch.device,
            repeated,
            sampler.steps_per_epoch,
            sampler.per_step,
            sampler.updates_per_epoch,
            sampler.per_update,
            trainer.peak_lr,
        )
        if "tensorboard" in self._settings.tracker:
            logger.info(
                "TensorBoard: tensorboard --logdir %s (its steps are 1000 x epochs)", self._settings.log_dir or self.folder
            )
        if trainer.settings.optim.warmup_epochs >= run.epochs:
            longer = (trainer.settings.optim.warmup_epochs, run.epochs)
            logger.warning("--warmup_epochs %d of --epochs %d: the learning rate never reaches its peak", *longer)
        if state.updates:
            logger.info("starting at epoch %.3f of %d", state.position, run.epochs)
        if self._writer is not None:
            self._estimate(state)

    def _estimate(self, state: TrainState) -> None:
        """Log the memory and time that the run is expected to take, before the first step takes them."""
        trainer, run = state.trainer, state.trainer.settings.run
        device, recomputed = trainer.launch.device, trainer.settings.machine.activation_checkpointing
        needed = step_memory(trainer.model, trainer.settings.model.mask_ratio, run.batch_size, trainer.precision, recomputed)
        available = total_memory(device)
        clips = (trainer.last_epoch - state.position) * trainer.sampler.updates_per_epoch * trainer.sampler.per_update
        left = timedelta(seconds=round(run_seconds(clips, trainer.flops_per_clip, trainer.peak_flops)))
        text = f"{needed / 2**30:.1f} GiB of memory a process" + (f" (free: {available / 2**30:.1f})" if available else "")
        logger.info("estimate: %s, %s for the run", text, left)
        if available and needed > available and not trainer.is_sharded:
            logger.warning("--batch_size %d does not fit %s: lower it, or take a smaller --model", run.batch_size, device)
        self._warn_of_days(left, trainer)

    def _warn_of_days(self, left: timedelta, trainer: Trainer) -> None:
        if left > timedelta(days=1) and trainer.launch.device.type != "cuda":
            logger.warning(
                "the run would take %.1f days on this %s. On a laptop: --model %s_vit_tiny, fewer --epochs, a short --input_size",
                left / timedelta(days=1),
                trainer.launch.device.type.upper(),
                trainer.settings.model.family,
            )

    def progress(self, state: TrainState, batches: Iterable[T]) -> Iterable[T]:
        """The batches of an epoch; on a terminal, with a progress bar."""
        if self._writer is None or not sys.stderr.isatty():
            return batches
        title, steps = f"epoch {state.epoch + 1}", state.trainer.sampler.steps_per_epoch
        return tqdm(batches, title, steps, leave=False, initial=state.step, unit="step", dynamic_ncols=True)

    def report_first(self, state: TrainState, losses: Mapping[str, torch.Tensor], throughput: Throughput) -> None:
        """Log the first update's loss and time, and what the run would take at this speed."""
        trainer, sampler = state.trainer, state.trainer.sampler
        synchronize(trainer.launch.device)
        steps_left = (trainer.last_epoch - state.epoch) * sampler.steps_per_epoch - state.step
        seconds, left = throughput.so_far(steps_left)
        logger.info("first update after %.1f s: loss %.4f; the run takes %s at this speed", seconds, losses["loss"].item(), left)
        self._warn_of_days(left, trainer)

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
        scalars = {f"train_{name}": value for name, value in losses.items()} | trainer.rates(state.updates)
        self._log.scalars(_step_of(epoch + done / sampler.steps_per_epoch), **scalars)

    def end_epoch(self, state: TrainState, figures: Mapping[str, float]) -> None:
        """Write an epoch's line of log.txt, and to TensorBoard what reports have not written there."""
        trainer = state.trainer
        rates = {f"train_{name}": value for name, value in trainer.rates(state.updates - 1).items()}
        self._log.epoch(**figures, **rates, epoch=state.epoch)
        others = {name: value for name, value in figures.items() if not name.startswith("train_loss")}
        self._log.scalars(_step_of(state.epoch), **others)

    def save(self, state: TrainState, epoch: int | None = None, wait: bool = False, is_best: bool = False, **how) -> None:
        """Write last.pth and, with an epoch, checkpoint-{epoch}.pth, in the background unless `wait`.

        With --keep_best, the best epoch is written as checkpoint-best.pth as well.
        """
        is_best = is_best and self._settings.keep_best
        if self._writer is not None or state.trainer.is_sharded:
            contents = state.state_dict()
            if self._writer is not None:
                self._writer.save(contents, epoch, wait, is_best, **how)

    def save_checkpoint(self, state: TrainState, epoch: int, is_last: bool, is_best: bool = False) -> None:
        """Write checkpoint-{epoch}.pth, start its evaluation, and do what the program adds to checkpoints."""
        is_evaluated = epoch >= self._settings.eval_after and not is_last
        quick_eval = partial(evaluate_by_evar, "quick_eval.sh", wait=False) if is_evaluated else None
        self.save(state, epoch, wait=is_last, is_best=is_best, then=quick_eval)
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

    def close(self, state: TrainState, is_done: bool) -> bool:
        """Wait for what is being written; returns whether the last checkpoint was written."""
        if self._writer is not None:
            self._writer.finish()
        is_saved = self._writer is None or not self._writer.failed
        if is_done and is_saved:
            self._log_end(state)
        self._log.close()
        return is_saved

    def _log_end(self, state: TrainState) -> None:
        trainer, epochs = state.trainer, state.trainer.settings.run.epochs
        checkpoint = self.checkpoint(trainer.last_epoch)
        logger.info("done in %s: %s", timedelta(seconds=round(time.monotonic() - self._began)), checkpoint)
        if trainer.last_epoch < epochs:
            logger.info("--auto_resume without --stop_at continues to epoch %d", epochs)
        logger.info("next: m2d embed RECORDINGS --weights %s --out embeddings.npz", checkpoint)


def _step_of(epochs: float) -> int:
    """TensorBoard's step at a position in epochs."""
    return int(1000 * epochs)
