"""One epoch of pre-training: the hot loop, and nothing else.

The host does not wait for the device between reports, which come every LOG_STEPS steps, at the same ones in a run that was
interrupted.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from ..data.dataset import Batch
from ..data.loader import on_device
from ..run.log import Pace, RunLog
from .device import peak_memory
from .trainer import LossMeter, Trainer

LOG_STEPS = 20

logger = logging.getLogger("m2d")


def _timed(batches: Iterable[Batch], pace: Pace) -> Iterator[Batch]:
    """The batches; the time spent waiting for each goes to `pace`."""
    batches = iter(batches)
    while True:
        begin = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            return
        pace.step(time.perf_counter() - begin)
        yield batch


def train_one_epoch(
    trainer: Trainer,
    batches: Iterable[Batch],
    epoch: int,
    log: RunLog,
    meter: LossMeter,
    first_step: int = 0,
    after_update: Callable[[int, bool], None] = lambda done, reported: None,
) -> None:
    """Train on an epoch's batches from `first_step` on.

    Args:
        trainer: the model in training.
        batches: this rank's batches, beginning with that of `first_step`.
        epoch: the epoch, from 0.
        log: where reports go.
        meter: takes the losses.
        first_step: the first step, a multiple of accum_iter.
        after_update: called after each update with the steps that are done, and whether all losses up to here are
            known to be finite.

    Raises:
        NonFiniteLoss: on all ranks, at the report after a loss that is not finite.
    """
    steps, accum_iter = trainer.plan.steps_per_epoch, trainer.args.accum_iter
    first_update = epoch * trainer.plan.updates_per_epoch
    pace = Pace(trainer.plan.batch_size * trainer.plan.world_size)
    trainer.model.train()
    for step, batch in enumerate(on_device(_timed(batches, pace), trainer.launch.device), first_step):
        if step % accum_iter == 0:
            lr = trainer.set_learning_rate(epoch + step / steps)
        done = step + 1
        whole_group = done % accum_iter == 0
        meter.add(trainer.forward_backward(batch, synchronise=whole_group), batch)
        if not whole_group:
            continue
        meter.norms.append(trainer.update(first_update + step // accum_iter))
        reported = done // LOG_STEPS > (done - accum_iter) // LOG_STEPS or done == steps
        if reported:
            loss = meter.report(trainer.may_overflow())[0].item()
            _report(trainer, log, pace, loss, epoch, done, lr)
        after_update(done, reported)


def _report(trainer: Trainer, log: RunLog, pace: Pace, loss: float, epoch: int, done: int, lr: float) -> None:
    steps, epochs = trainer.plan.steps_per_epoch, trainer.args.epochs
    rate, waiting, to_go = pace.report((trainer.last_epoch - epoch) * steps - done)
    line = f"epoch {epoch + 1}/{epochs}  step {done}/{steps}  loss {loss:.4f}  lr {lr:.2e}  {rate:.0f} clips/s"
    line += f"  mfu {trainer.utilisation(rate):.0%}  data-wait {waiting:.0%}  to go {to_go}"
    memory = peak_memory(trainer.launch.device)
    logger.info("%s%s", line, f"  memory {memory / 2**30:.1f} GiB" if memory else "")
    scalars = {"train_loss": loss, "lr": lr}
    if trainer.moves_target:
        update = epoch * trainer.plan.updates_per_epoch + (done - 1) // trainer.args.accum_iter
        scalars["ema_decay"] = trainer.target_decay(update)
    log.scalars(int(1000 * (epoch + done / steps)), **scalars)
