"""One pre-training run: epochs, checkpoints, and the hand-off to evaluation."""

import logging
from argparse import Namespace
from collections.abc import Sequence
from datetime import date
from functools import partial
from pathlib import Path

from torch import nn

from ..checkpoint.file import load_file
from ..run.checkpoint_writer import Saver
from ..run.folder import RunFolder, existing_run
from ..run.log import RunLog, errors_alone, start_console
from ..run.name import run_name
from ..run.stop_signal import StopSignal
from ..utils.errors import ReadError
from . import config as options
from . import distributed
from . import resume as continuation
from .distributed import Launch, from_rank0, together
from .fsdp import gathered, whole_model
from .loop import train_one_epoch
from .nan_report import report_bad_numbers
from .program import Recipe
from .setup import DataSets, TrainingBatches, connect, make_plan, make_trainer, normalisation, open_data
from .trainer import LossMeter, NonFiniteLoss, Trainer
from .validation import hand_to_evar, label_free_quality, validation_losses

#: Exit status of a run that was asked to stop and can go on with --auto_resume (EX_TEMPFAIL of sysexits.h).
EXIT_REQUEUE = 75
#: Exit status of a run that ended but could not write its last checkpoint (EX_IOERR of sysexits.h).
EXIT_NOT_SAVED = 74
#: Exit status of a run whose loss was not a finite number any more.
EXIT_BAD_NUMBERS = 3
#: Exit status after a second Ctrl-C, or one before training began (128 + SIGINT).
EXIT_INTERRUPTED = 130
#: Exit status where something has to be mended by the user.
EXIT_USAGE = 2

logger = logging.getLogger("m2d")


class Stopped(Exception):
    """The run was asked to stop."""


def main(recipe: Recipe, argv: Sequence[str] | None = None) -> int:
    """Run a training program; returns its exit status."""
    parser = options.make_parser(recipe.prog, recipe.description, recipe.defaults, recipe.without)
    args = parser.parse_args(argv)
    start_console()
    is_main = True
    try:
        launch = distributed.start(args.device)
        is_main = launch.is_main
        if not is_main:
            errors_alone()
        options.check(args, recipe.families)
        recipe.check(args)
        return pretrain(recipe, args, launch)
    except (ValueError, OSError) as error:
        if is_main:
            logger.error("%s: error: %s", recipe.prog, error)
        return EXIT_USAGE
    except RuntimeError as error:
        if not distributed.lost_another(error):
            raise
        if is_main:
            logger.error("another process of the run has ended, so this one ends too; --auto_resume goes on: %s", error)
        return EXIT_REQUEUE
    except KeyboardInterrupt:
        if is_main:
            logger.error("interrupted; --auto_resume goes on from the last checkpoint, where there is one")
        return EXIT_INTERRUPTED
    finally:
        distributed.stop()


def pretrain(recipe: Recipe, args: Namespace, launch: Launch) -> int:
    """One run of checked settings; returns the exit status."""
    data = open_data(recipe, args, launch)
    plan = make_plan(args, data.train, launch)
    facts = {"effective_batch": plan.per_update, "lists": continuation.list_digests(data.train)}
    folder = RunFolder(from_rank0(launch, lambda: _wanted_folder(recipe, args, plan.per_update)))
    newest = from_rank0(launch, lambda: folder.find_run(args.auto_resume))
    checkpoint = None
    if newest is not None:
        logger.info("going on from %s", newest)
        checkpoint = together(launch, lambda: load_file(newest))
        continuation.check_same_run(checkpoint, args, facts)
    facts["stats"] = checkpoint["stats"] if checkpoint else normalisation(args, data.train, launch)
    trainer = together(launch, lambda: make_trainer(args, data.train, plan, *facts["stats"], launch, checkpoint is None))
    position = together(launch, lambda: continuation.starting_point(trainer, checkpoint))
    connect(trainer, data.train)
    from_rank0(launch, lambda: folder.begin(continuation.saved_settings(args)))
    return Run(recipe, args, data, trainer, folder.path, facts, position).go()


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
        self.saver = Saver(folder, args.save_minutes, args.keep_last) if self.is_main else None
        self.stop = StopSignal()

    def go(self) -> int:
        """Train to the end; returns the exit status."""
        plan, args = self.trainer.plan, self.args
        first_epoch, updates_done = divmod(self.updates, plan.updates_per_epoch)
        if first_epoch >= self.trainer.last_epoch:
            logger.info("%s is finished: %d of %d epochs are done", self.folder, first_epoch, args.epochs)
            return 0
        self.log = RunLog(self.folder if self.is_main else None, args.log_dir, self.updates / plan.updates_per_epoch)
        self._announce()
        batches = TrainingBatches(self.data.train, plan, args, self.trainer.launch.device)
        status = 0
        try:
            with self.stop:
                self._epochs(first_epoch, updates_done * args.accum_iter, batches)
        except Stopped:
            logger.warning("stopped at update %d; --auto_resume goes on from there", self.updates)
            status = EXIT_REQUEUE
        except NonFiniteLoss as error:
            report_bad_numbers(self.folder, self.updates, self.meter, self.data.train, error)
            return EXIT_BAD_NUMBERS
        except Exception:
            logger.debug("the run ended with an error:", exc_info=True)
            raise
        finally:
            batches.close()
            if self.is_main:
                self.saver.finish()
            self.log.close()
        if self.is_main and self.saver.failed:
            return EXIT_NOT_SAVED
        if self.is_main and status == 0:
            hand_to_evar("all_eval.sh", self._numbered(self.trainer.last_epoch), wait=True)
        return status

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

    def _epochs(self, first_epoch: int, first_step: int, batches: TrainingBatches) -> None:
        for epoch in range(first_epoch, self.trainer.last_epoch):
            try:
                self._epoch(epoch, batches.of(epoch, first_step), first_step)
            except ReadError:
                if self.meter.unreported % self.args.accum_iter == 0:
                    self._keep_position()
                raise
            first_step = 0

    def _epoch(self, epoch: int, batches, first_step: int) -> None:
        train_one_epoch(self.trainer, batches, epoch, self.log, self.meter, first_step, self._after_update)
        done, last = epoch + 1, epoch + 1 == self.trainer.last_epoch
        figures = {**self.meter.means(), "train_lr": self.trainer.optimizer.param_groups[0]["lr"]}
        if self.trainer.moves_target:
            figures["train_ema_decay"] = self.trainer.target_decay(self.updates - 1)
        self.meter = LossMeter()
        figures |= self._evaluate(done)
        self.log.epoch(**figures, epoch=done)
        self._save(done, last)
        if self.stop.agreed() and not last:
            self._keep_position()
            raise Stopped

    def _save(self, done: int, last: bool) -> None:
        """Write last.pth each epoch and, where its time has come, the numbered checkpoint with all that follows it."""
        if not last and done % self.args.save_freq:
            self._write()
            return
        evaluate = partial(hand_to_evar, "quick_eval.sh", wait=False)
        self._write(done, wait=last, then=evaluate if done >= self.args.eval_after and not last else None)
        if self.is_main:
            self.recipe.at_checkpoint(self.trainer, self._numbered(done))

    def _write(self, epoch: int | None = None, **how) -> None:
        """Have rank 0 write the state; all ranks call this where a sharded model is to be gathered."""
        if self.is_main or self.trainer.twin is not None:
            state = gathered(self.state())
            if self.is_main:
                self.saver.save(state, epoch, **how)

    def _numbered(self, epoch: int) -> Path:
        return self.folder / f"checkpoint-{epoch}.pth"

    def _evaluate(self, done: int) -> dict[str, float]:
        """Validation loss each epoch, label-free quality each feature_eval_freq epochs; on every rank."""
        frequency = self.args.feature_eval_freq
        quality_is_due = frequency and done % frequency == 0
        if not (self.data.val or quality_is_due):
            return {}
        model = whole_model(self.trainer)
        figures = validation_losses(self.trainer, model, self.data.val) if self.data.val else {}
        if figures:
            logger.info("epoch %d  %s", done, "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        if quality_is_due:
            quality = from_rank0(self.trainer.launch, lambda: self._label_free_quality(model))
            if quality:
                logger.info("epoch %d  %s", done, "  ".join(f"{name} {value:.3f}" for name, value in quality.items()))
            figures |= quality
        self.log.scalars(1000 * done, **figures)
        return figures

    def _label_free_quality(self, model: nn.Module) -> dict[str, float]:
        quality = label_free_quality(self.trainer, model, self.data.train, "train")
        return quality | (label_free_quality(self.trainer, model, self.data.val, "val") if self.data.val else {})

    def _after_update(self, done: int, reported: bool) -> None:
        self.updates += 1
        if done == self.trainer.plan.steps_per_epoch:
            return  # what ends an epoch comes first: its line in the log, its checkpoint
        if self.stop.agreed():
            self._keep_position()
            raise Stopped
        if reported and self._save_is_due():
            self._write()

    def _keep_position(self) -> None:
        """Write last.pth at the present update, once its numbers are known to be finite."""
        if self.meter.unreported:
            self.meter.report(self.trainer.may_overflow())
        self._write(wait=True)

    def _save_is_due(self) -> bool:
        if self.trainer.twin is not None:
            return from_rank0(self.trainer.launch, lambda: self.saver.due())
        return self.is_main and self.saver.due()
