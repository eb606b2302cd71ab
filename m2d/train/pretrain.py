"""A pre-training run from its command line to its exit status."""

import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ..checkpoint.training_state import load_training_state
from ..run.evar import evaluate_by_evar
from ..run.folder import RunFolder, existing_run
from ..run.log import errors_alone, start_console
from ..run.name import run_name
from ..run.stop_signal import StopSignal
from ..utils.errors import ReadError
from ..utils.outputs import check_writable
from ..utils.program import EXIT_BAD_NUMBERS, EXIT_INTERRUPTED, EXIT_NOT_SAVED, EXIT_REQUEUE, EXIT_USAGE, open_closed_streams
from .checks import check
from .config import OutputSettings, Settings, make_parser
from .distributed import launch as processes
from .distributed.agreement import check_same, shared_values
from .distributed.collectives import from_rank0, run_on_all_ranks
from .distributed.launch import Launch
from .distributed.watchdog import Watchdog, ranks_text
from .loop import Stopped, train
from .metrics import NonFiniteLoss
from .output import RunOutput
from .programs import Program
from .resume import check_same_run, file_digests, list_digests, start_state
from .setup import DataSets, TrainingBatches, make_sampler, make_trainer, normalisation, open_data, wrap_distributed
from .trainer import TrainState

logger = logging.getLogger("m2d")


def main(program: Program, argv: Sequence[str] | None = None) -> int:
    """Run a training program; returns its exit status."""
    args = make_parser(program.prog, program.description, program.defaults, program.without).parse_args(argv)
    settings = Settings.from_args(args)
    open_closed_streams()
    start_console()
    is_main = True
    try:
        launch = processes.start(settings.machine.device, settings.machine.rank_timeout)
        is_main = launch.is_main
        if not is_main:
            errors_alone()
        check_same(launch, shared_values(settings))
        check(settings, program.families)
        program.check(settings)
        return pretrain(program, settings, launch)
    except (ValueError, OSError) as error:
        if is_main:
            logger.error("%s: error: %s", program.prog, error)
        return EXIT_USAGE
    except RuntimeError as error:
        if not processes.is_rank_loss(error):
            raise
        lost = Watchdog.lost_ranks()
        if is_main:
            who = ranks_text(lost) if lost else "another process of the run"
            logger.error("%s ended, so this process ends too; --auto_resume resumes the run: %s", who, error)
        return EXIT_REQUEUE
    except KeyboardInterrupt:
        if is_main:
            logger.error("interrupted; --auto_resume resumes from the last checkpoint, if there is one")
        return EXIT_INTERRUPTED
    finally:
        processes.stop()


def pretrain(program: Program, settings: Settings, launch: Launch) -> int:
    """One run of checked settings; returns the exit status."""
    data = open_data(program, settings, launch)
    lists = list_digests(data.train)
    check_same(launch, {f"the list of --{flag} (its digest)": digest for flag, digest in lists.items()})
    sampler = make_sampler(settings, data.train, launch)
    metadata = {"effective_batch": sampler.per_update, "lists": lists, "files": file_digests(data.train), **data.train.metadata}
    if program.is_contrastive:
        metadata["step_batch"] = sampler.per_step
    folder = RunFolder(from_rank0(launch, lambda: _wanted_folder(program, settings, sampler.per_update)))
    newest = from_rank0(launch, lambda: _find_run(folder, settings.output))
    checkpoint = None
    if newest is not None:
        logger.info("resuming from %s", newest)
        checkpoint = run_on_all_ranks(launch, lambda: load_training_state(newest, own=True))
        check_same_run(checkpoint, settings, metadata)
    stats: Any = checkpoint["stats"] if checkpoint else normalisation(settings, data.train, launch)
    metadata["stats"] = stats
    check_same(launch, {"statistics": stats, "updates done": checkpoint["updates"] if checkpoint else 0})
    trainer = run_on_all_ranks(
        launch, lambda: make_trainer(settings, data.train, sampler, stats[0], stats[1], launch, checkpoint is None)
    )
    state = run_on_all_ranks(launch, lambda: start_state(trainer, metadata, checkpoint))
    wrap_distributed(trainer, data.train)
    from_rank0(launch, lambda: folder.begin(settings.as_dict()))
    return run(program, state, data, folder.path)


def _wanted_folder(program: Program, settings: Settings, effective_batch: int) -> Path:
    if settings.output.output_dir:
        return Path(settings.output.output_dir)
    values = settings.as_dict()
    name = run_name(values, effective_batch, program.name_defaults, program.name_has_rate, program.name_has_epochs, date.today())
    return existing_run(Path(name)) if settings.output.auto_resume else Path(name)


def _find_run(folder: RunFolder, output: OutputSettings) -> Path | None:
    """As `RunFolder.find_run`; refuses what cannot be written before the work begins."""
    if output.log_dir:
        check_writable(Path(output.log_dir) / "events")
    return folder.find_run(output.auto_resume)


def run(program: Program, state: TrainState, data: DataSets, folder: Path) -> int:
    """Train a state to the run's end, and write all that a run leaves; returns the exit status."""
    trainer, settings = state.trainer, state.trainer.settings
    if state.epoch >= trainer.last_epoch:
        logger.info("%s is finished: %d of %d epochs are done", folder, state.epoch, settings.run.epochs)
        return 0
    output = RunOutput(program, trainer, folder, state.position)
    output.announce(state, data.train)
    position = (state.epoch, state.step)
    batches = TrainingBatches(data.train, trainer.sampler, settings, trainer.launch.device, position, trainer.last_epoch)
    status, is_done = 0, False
    try:
        with StopSignal() as stop:
            train(state, data, batches, output, stop)
        is_done = True
    except Stopped:
        logger.warning("stopped at update %d; --auto_resume resumes from there", state.updates)
        status = EXIT_REQUEUE
    except NonFiniteLoss as error:
        state.meter.report_bad_numbers(folder, state.updates, data.train, error, trainer.launch.is_main)
        return EXIT_BAD_NUMBERS
    except ReadError:
        if state.meter.unreported % settings.run.accum_iter == 0:
            output.save_position(state)
        logger.debug("the run ended with an error:", exc_info=True)
        raise
    except Exception:
        logger.debug("the run ended with an error:", exc_info=True)
        raise
    finally:
        batches.close()
        is_saved = output.close(state, is_done)
    if not is_saved:
        return EXIT_NOT_SAVED
    if trainer.launch.is_main and is_done:
        evaluate_by_evar("all_eval.sh", output.checkpoint(trainer.last_epoch), wait=True)
    return status
