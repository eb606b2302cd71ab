"""Where a training step goes, by phase and by operation.

    m2d profile [m2d|mae|as|s] FLAGS OF THE TRAINING PROGRAM [--steps 10] [--trace trace.json]

Takes the training program's own flags, so what is measured is the run itself: its data, model, precision and compilation.
The trace opens in https://ui.perfetto.dev.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from ..run.log import start_console
from ..train.checks import check
from ..train.config import Settings, make_parser
from ..train.device import synchronize
from ..train.distributed import launch as processes
from ..train.metrics import Throughput
from ..train.programs import PROGRAMS
from ..train.setup import TrainingBatches, make_sampler, make_trainer, normalisation, open_data
from ..train.trainer import Trainer
from ..utils.outputs import check_outputs
from ..utils.program import run_program

#: Older names of the variants of m2d train.
ALIASES = {"m2d_as": "as", "m2d_s": "s"}
WARM_UP = 3
TOP_OPERATIONS = 12
#: Methods of models and trainers, by the phase that they are.
MODEL_PHASES = {
    "forward_encoder": "online encoder",
    "forward_decoder": "predictor",
    "forward_target_encoder": "target encoder",
    "forward_offline": "offline task",
    "update_target_network": "EMA",
}


def _named(method: Callable, phase: str) -> Callable:
    def call(*args, **kwargs):
        with record_function(f"phase: {phase}"):
            return method(*args, **kwargs)

    return call


def name_phases(trainer: Trainer) -> None:
    """Let the profiler see each phase of a step under its name."""
    for attribute, phase in MODEL_PHASES.items():
        if hasattr(trainer.model, attribute):
            setattr(trainer.model, attribute, _named(getattr(trainer.model, attribute), phase))
    trainer.transform = _named(trainer.transform, "inputs: noise, normalising, mask, teacher")
    trainer.forward_backward = _named(trainer.forward_backward, "forward and backward")
    trainer.optimizer.step = _named(trainer.optimizer.step, "optimizer")
    nn.utils.clip_grad_norm_ = _named(nn.utils.clip_grad_norm_, "gradient clipping")


def profile_steps(trainer: Trainer, batches: TrainingBatches, steps: int) -> profile:
    """A profile of `steps` steps after a few that are not counted."""
    device, sampler = trainer.launch.device, trainer.sampler
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    trainer.model.train()
    trainer.set_learning_rate(0.0)
    source = batches.rest_of_epoch(Throughput(sampler.per_step))
    for batch in itertools.islice(source, WARM_UP):
        trainer.forward_backward(batch, synchronize=True)
        trainer.update(0)
    name_phases(trainer)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            with record_function("phase: waiting for data"):
                batch = next(source)
            trainer.forward_backward(batch, synchronize=True)
            trainer.update(0)
            synchronize(device)
    return profiler


def report(profiler: profile, steps: int, on_cuda: bool) -> str:
    """Two tables: milliseconds a step of each phase, and of the most expensive operations."""

    def total(event) -> float:
        return event.device_time_total if on_cuda and event.device_time_total else event.cpu_time_total

    def own(event) -> float:
        return event.self_device_time_total if on_cuda else event.self_cpu_time_total

    events = profiler.key_averages()
    phases = sorted((e for e in events if e.key.startswith("phase: ")), key=total, reverse=True)
    operations = sorted((e for e in events if not e.key.startswith("phase: ")), key=own, reverse=True)
    everything = sum(own(e) for e in operations) or 1
    lines = [f"{'phase':48} {'ms/step':>9}"]
    lines += [f"{e.key.removeprefix('phase: '):48} {total(e) / 1000 / steps:9.2f}" for e in phases]
    lines += ["", f"{'operation':48} {'ms/step':>9} {'share':>6} {'calls':>6}"]
    for e in operations[:TOP_OPERATIONS]:
        lines.append(f"{e.key[:48]:48} {own(e) / 1000 / steps:9.2f} {own(e) / everything:6.0%} {e.count / steps:6.0f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Profile and print; returns the exit status."""
    return run_program(lambda: profile_run(argv))


def profile_run(argv: Sequence[str] | None = None) -> None:
    """Profile a run's steps and print the report.

    Raises:
        ValueError: an epoch has too few steps.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    variant = ALIASES.get(argv[0], argv[0]) if argv else ""
    if variant in PROGRAMS:
        del argv[0]
    program = PROGRAMS.get(variant, PROGRAMS["m2d"])
    parser = make_parser("m2d profile", __doc__.split("\n")[0], program.defaults, program.without)
    parser.add_argument("--steps", type=int, default=10, help="steps to profile")
    parser.add_argument("--trace", type=Path, help="file to write the trace to")
    args = parser.parse_args(argv)
    settings = Settings.from_args(args)
    check(settings, program.families)
    program.check(settings)
    if args.trace:
        check_outputs([args.trace], [settings.data.csv_main], overwrite=True)
    start_console()
    launch = processes.start(settings.machine.device)
    data = open_data(program, settings, launch)
    sampler = make_sampler(settings, data.train, launch)
    trainer = make_trainer(settings, data.train, sampler, *normalisation(settings, data.train, launch), launch)
    batches = TrainingBatches(data.train, sampler, settings, launch.device, start=(0, 0), last_epoch=1)
    steps = min(args.steps, sampler.steps_per_epoch - WARM_UP)
    if steps < 1:
        raise ValueError(f"an epoch has {sampler.steps_per_epoch} steps, and {WARM_UP} warm up: lower --batch_size")
    try:
        profiler = profile_steps(trainer, batches, steps)
    finally:
        batches.close()
    print(report(profiler, steps, launch.device.type == "cuda"))
    if args.trace:
        profiler.export_chrome_trace(str(args.trace))
        print(f"trace: {args.trace}")


if __name__ == "__main__":
    sys.exit(main())
