"""The training loop: epochs, steps, reports, saves, evaluation, stopping.

The host waits for the device after the first update and at reports, which come every LOG_STEPS steps, at the same ones in a
resumed run.
"""

from ..run.stop_signal import StopSignal
from .metrics import LossMeter, Throughput
from .monitoring.validation import evaluate
from .output import RunOutput
from .setup import DataSets, TrainingBatches
from .trainer import TrainState

LOG_STEPS = 20


class Stopped(Exception):
    """The run was asked to stop, and its state is saved."""


def train(state: TrainState, data: DataSets, batches: TrainingBatches, output: RunOutput, stop: StopSignal) -> None:
    """Train from the state's position to the run's last epoch; all ranks call this.

    Raises:
        Stopped: a signal asked to stop.
        NonFiniteLoss: on all ranks, at the report after a loss or gradient that is not finite; nothing was saved since.
        ReadError: on all ranks, where a clip cannot be read.
    """
    trainer, sampler = state.trainer, state.trainer.sampler
    accum_iter, steps, first_update = sampler.accum_iter, sampler.steps_per_epoch, state.updates
    for epoch in range(state.epoch, trainer.last_epoch):
        trainer.model.train()
        throughput = Throughput(sampler.per_step)
        for step, batch in enumerate(output.progress(state, batches.rest_of_epoch(throughput)), state.step):
            if step % accum_iter == 0:
                trainer.set_learning_rate(epoch + step / steps)
            done = step + 1
            update_is_due = done % accum_iter == 0
            losses = trainer.forward_backward(batch, synchronize=update_is_due)
            state.meter.add(losses, batch)
            if not update_is_due:
                continue

            state.meter.norms.append(trainer.update(state.updates))
            if state.updates == first_update:
                output.report_first(state, losses, throughput)
            report_is_due = done // LOG_STEPS > (done - accum_iter) // LOG_STEPS or done == steps
            if report_is_due:
                output.report(state, state.meter.report(trainer.may_overflow()), throughput)
            state.updates += 1
            if done == steps:
                continue  # an epoch's end has its own save, and stops after it
            if stop.agreed():
                output.save_position(state)
                raise Stopped
            if report_is_due and output.save_is_due(state):
                output.save(state)

        epoch_means, state.meter = state.meter.means(), LossMeter()
        figures = {**epoch_means, **evaluate(trainer, data, epoch + 1)}
        output.end_epoch(state, figures)
        is_last, is_best = epoch + 1 == trainer.last_epoch, state.is_best(figures)
        if is_last or (epoch + 1) % trainer.settings.output.save_freq == 0:
            output.save_checkpoint(state, epoch + 1, is_last, is_best)
        else:
            output.save(state, is_best=is_best)
        if stop.agreed() and not is_last:
            output.save_position(state)
            raise Stopped
