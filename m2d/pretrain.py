"""One pre-training run: epochs, checkpoints, and the hand-off to evaluation."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
import torch.distributed as dist

from . import continuation, distributed, options
from .checkpoint_file import load_file
from .distributed import Launch, from_rank0
from .engine_pretrain_m2d import train_one_epoch
from .evaluation import hand_to_evar, label_free_quality, validation_losses
from .recipe import Recipe
from .run_folder import RunFolder, existing_run
from .run_log import RunLog, start_console
from .run_name import run_name
from .saver import Saver
from .setup_run import DataSets, TrainingBatches, make_trainer, normalisation, open_data
from .stop_signal import StopSignal
from .trainer import LossMeter, NonFiniteLoss, Trainer

#: Exit status of a run that was asked to stop and can go on with --auto_resume (EX_TEMPFAIL of sysexits.h).
EXIT_REQUEUE = 75
#: Exit status of a run that ended but could not write its last checkpoint (EX_IOERR of sysexits.h).
EXIT_NOT_SAVED = 74
#: Exit status of a run whose loss was not a finite number any more.
EXIT_BAD_NUMBERS = 3
#: Exit status where something has to be mended by the user.
EXIT_USAGE = 2

logger = logging.getLogger("m2d")


class Stopped(Exception):
    """The run was asked to stop."""


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run a training program; returns its exit status."""
    parser = options.make_parser(recipe.prog, recipe.description, recipe.defaults, recipe.without)
    args = parser.parse_args(argv)
    start_console(is_main=True)
    is_main = True
    try:
        launch = distributed.start(args.device)
        is_main = launch.is_main
        start_console(is_main)
        options.check(args, recipe.families)
        recipe.check(args)
        return pretrain(recipe, args, launch)
    except (ValueError, OSError) as error:
        if is_main:
            logger.error("%s: error: %s", recipe.prog, error)
        logger.debug("where this came from:", exc_info=True)
        return EXIT_USAGE
    finally:
        distributed.stop()


def pretrain(recipe: Recipe, args: Namespace, launch: Launch) -> int:
    """One run of checked settings; returns the exit status."""
    effective_batch = args.batch_size * args.accum_iter * launch.world_size
    data = open_data(recipe, args, launch)
    folder = from_rank0(launch, lambda: _wanted_folder(recipe, args, effective_batch))
    holder = RunFolder(folder, args.auto_resume) if launch.is_main else None
    newest = from_rank0(launch, lambda: holder.newest_checkpoint())
    checkpoint = None
    if newest is not None:
        logger.info("going on from %s", newest)
        checkpoint = load_file(newest)
        continuation.check_settings(checkpoint["args"], args, checkpoint["effective_batch"], effective_batch)
    stats = checkpoint["stats"] if checkpoint else normalisation(args, data.train, launch)
    trainer = make_trainer(args, data.train, *stats, launch, load_weights=checkpoint is None)
    position = continuation.starting_point(trainer, checkpoint)
    if launch.is_main:
        holder.claim()
        holder.record(continuation.saved_settings(args))
    facts = {"stats": stats, "effective_batch": effective_batch}
    return Run(recipe, args, data, trainer, folder, facts, position).go()


def _wanted_folder(recipe: Recipe, args: Namespace, effective_batch: int) -> Path:
    if args.output_dir:
        return Path(args.output_dir)
    defaults = {**recipe.name_defaults}
    name = run_name(args, effective_batch, defaults, recipe.name_has_rate, recipe.name_has_epochs, date.today())
    return existing_run(Path(name)) if args.auto_resume else Path(name)


class Run:
    """A run under way.

    Args:
        recipe: the program.
        args: the settings.
        data: what is learned from, and validated on.
        trainer: the model in training.
        folder: the run's folder.
        facts: what checkpoints keep beside weights, optimizer and settings.
        position: where the run starts or goes on.
    """

    def __init__(
        self,
        recipe: Recipe,
        args: Namespace,
        data: DataSets,
        trainer: Trainer,
        folder: Path,
        facts: dict,
        position: continuation.Position,
    ):
        self.recipe = recipe
        self.args, self.data, self.trainer, self.folder, self.facts = args, data, trainer, folder, facts
        self.updates, self.meter = position.updates, LossMeter(position.meter)
        self.is_main = trainer.launch.is_main
        self.saver = Saver(folder, self.state, args.save_minutes, args.keep_last) if self.is_main else None
        self.stop = StopSignal()

    def go(self) -> int:
        """Train to the end; returns the exit status."""
        plan, args = self.trainer.plan, self.args
        first_epoch, updates_done = divmod(self.updates, plan.updates_per_epoch)
        log_from = self.updates / plan.updates_per_epoch
        self.log = RunLog(self.folder if self.is_main else None, args.log_dir, log_from)
        self._announce()
        if first_epoch >= self.trainer.last_epoch:
            logger.info("%s is finished: %d of %d epochs are done", self.folder, first_epoch, args.epochs)
            return 0
        batches = TrainingBatches(self.data.train, plan, args, self.trainer.launch.device)
        try:
            with self.stop:
                for epoch in range(first_epoch, self.trainer.last_epoch):
                    first_step = updates_done * args.accum_iter
                    self._epoch(epoch, batches.of(epoch, first_step), first_step)
                    updates_done = 0
        except Stopped:
            logger.warning("stopped at update %d; --auto_resume goes on from there", self.updates)
            return EXIT_REQUEUE
        except NonFiniteLoss as error:
            self._report_bad_numbers(error)
            return EXIT_BAD_NUMBERS
        finally:
            batches.close()
            if self.is_main:
                self.saver.finish()
            self.log.close()
        return EXIT_NOT_SAVED if self.is_main and self.saver.failed else 0

    def state(self) -> dict:
        """What a checkpoint holds."""
        trainer = self.trainer
        return {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "epoch": self.updates // trainer.plan.updates_per_epoch,
            "scaler": trainer.scaler.state_dict(),
            "args": continuation.saved_settings(self.args),
            "updates": self.updates,
            "updates_per_epoch": trainer.plan.updates_per_epoch,
            "meter": self.meter.state(),
            **self.facts,
            **self.data.train.facts,
        }

    def _announce(self) -> None:
        plan, trainer = self.trainer.plan, self.trainer
        parameters = sum(p.numel() for p in trainer.trained)
        logger.info("output folder: %s", self.folder)
        logger.info(
            "%s, %.1f M trained parameters, %s on %s; %d samples an epoch, %d steps of %d clips, %d updates of %d; peak lr %.3g",
            self.args.model,
            parameters / 1e6,
            str(trainer.precision).removeprefix("torch."),
            trainer.launch.device,
            plan.samples,
            plan.steps_per_epoch,
            plan.batch_size * plan.world_size,
            plan.updates_per_epoch,
            plan.per_update,
            trainer.peak_lr,
        )
        if self.updates:
            logger.info("starting at epoch %.3f", self.updates / plan.updates_per_epoch)

    def _epoch(self, epoch: int, batches, first_step: int) -> None:
        train_one_epoch(self.trainer, batches, epoch, self.log, self.meter, first_step, self._after_update)
        done, last = epoch + 1, epoch + 1 == self.trainer.last_epoch
        figures = {**self.meter.means(), "train_lr": self.trainer.optimizer.param_groups[0]["lr"]}
        if self.trainer.moves_target:
            figures["train_ema_decay"] = self.trainer.target_decay(self.updates - 1)
        self.meter = LossMeter()
        figures |= self._evaluate(done)
        self.log.epoch(**figures, epoch=done)
        if self.is_main:
            self._save(done, last)

    def _save(self, done: int, last: bool) -> None:
        """Write last.pth each epoch and, where its time has come, the numbered checkpoint with all that follows it."""
        if not last and done % self.args.save_freq:
            self.saver.save()
            return
        self.saver.save(done, wait=last)
        checkpoint = self.folder / f"checkpoint-{done}.pth"
        self.recipe.at_checkpoint(self.trainer, checkpoint)
        if last or done >= self.args.eval_after:
            self.saver.finish()
            if checkpoint.exists():
                hand_to_evar("all_eval.sh" if last else "quick_eval.sh", checkpoint, wait=last)

    def _evaluate(self, done: int) -> dict[str, float]:
        """Validation loss each epoch, label-free quality each feature_eval_freq epochs; on every rank."""
        figures = validation_losses(self.trainer, self.data.val) if self.data.val else {}
        if figures:
            logger.info("epoch %d  %s", done, "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        frequency = self.args.feature_eval_freq
        if frequency and done % frequency == 0 and self.is_main:
            quality = label_free_quality(self.trainer, self.data.train, "train")
            if self.data.val:
                quality |= label_free_quality(self.trainer, self.data.val, "val")
            if quality:
                logger.info("epoch %d  %s", done, "  ".join(f"{name} {value:.3f}" for name, value in quality.items()))
            figures |= quality
        self.log.scalars(1000 * done, **figures)
        return figures

    def _after_update(self, done: int, reported: bool) -> None:
        self.updates += 1
        if self.stop.agreed():
            if self.meter.unreported:
                self.meter.report()
            if self.is_main:
                self.saver.save(wait=True)
            raise Stopped
        if reported and self.is_main and self.saver.due():
            self.saver.save()

    def _report_bad_numbers(self, error: NonFiniteLoss) -> None:
        """Write nan_report.pt and say what to try; the checkpoints stay as they are."""
        names = self.data.train.names(self.meter.suspects())
        everyone = [names]
        if dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, names)
        if not self.is_main:
            return
        report = {
            "update": self.updates,
            "error": str(error),
            "files": [name for names in everyone for name in names],
            "losses": torch.stack(self.meter.recent).tolist(),
            "gradient_norms": torch.stack(self.meter.norms).tolist(),
        }
        torch.save(report, self.folder / "nan_report.pt")
        logger.error(
            "stopped within %d steps of a loss that is not a finite number, about update %d; the last checkpoint is good. "
            "%s names the batch's files, losses and gradient norms. Look whether its files hold NaN; then try --bf16 in "
            "place of float16, or a lower --blr (%g now), and go on with --auto_resume",
            len(self.meter.recent),
            self.updates,
            self.folder / "nan_report.pt",
            self.args.blr,
        )
