"""One training step: forward, backward and update, in the run's precision and on all its processes."""

from argparse import Namespace
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from ..data.dataset import Batch
from ..data.sampler import EpochSampler
from .batch_transform import BatchInputs
from .device import peak_flops
from .distributed import Launch, sum_over_ranks
from .mfu import step_flops
from .schedules import ema_decay, learning_rate

TERM_NAMES = ("loss", "loss_m2d", "loss_off")


class NonFiniteLoss(RuntimeError):
    """A loss or a gradient that is not a finite number."""


def loss_terms(output: tuple) -> torch.Tensor:
    """The losses of a model's output: float32 `[1]`, or `[3]` (total, M2D, offline) for M2D-X and its kin."""
    loss, _, rest = output
    parts = rest[2:] if isinstance(rest, tuple) else ()
    return torch.stack([term.float() for term in (loss, *parts)])


def precision_of(args: Namespace, device: torch.device) -> torch.dtype:
    """float16 or, with --bf16, bfloat16 on CUDA; float32 elsewhere."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if args.bf16 else torch.float16


@dataclass
class Trainer:
    """A model in training.

    `model` is the bare model, `parallel` the same wrapped for the run's processes; `peak_lr` the highest learning rate.
    `twin`: where the model is sharded, a whole one for evaluation.
    """

    args: Namespace
    launch: Launch
    model: nn.Module
    parallel: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    inputs: BatchInputs
    plan: EpochSampler
    peak_lr: float
    twin: nn.Module | None = None

    def __post_init__(self):
        self.precision = precision_of(self.args, self.launch.device)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.last_epoch = min(self.args.stop_at, self.args.epochs) if self.args.stop_at > 0 else self.args.epochs
        self.flops_per_clip = step_flops(self.model, self.args.mask_ratio)
        self.moves_target = self.model.has_ema_target

    def autocast(self) -> torch.autocast:
        """Mixed precision where the run has it."""
        return torch.autocast(self.launch.device.type, self.precision, enabled=self.precision != torch.float32)

    def losses(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        """Losses of a batch `[terms]` through the bare or the parallel model."""
        with self.autocast():
            return loss_terms(module(*self.inputs(batch)))

    def forward_backward(self, batch: Batch, synchronise: bool) -> torch.Tensor:
        """Losses of a batch `[terms]`, their gradients added up; reduced over processes only with `synchronise`."""
        if self.twin is not None:
            self.model.set_requires_gradient_sync(synchronise)
        alone = self.parallel is self.model
        with nullcontext() if synchronise or alone else self.parallel.no_sync():
            terms = self.losses(self.parallel, batch)
            self.scaler.scale(terms[0] / self.args.accum_iter).backward()
        return terms.detach()

    def update(self, number: int) -> torch.Tensor:
        """Clip, step the optimizer and move the target encoder; `number` counts a run's updates from 0.

        Returns:
            The gradient norm before clipping, a scalar on the device.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.args.clip_grad or float("inf"))
        if self.twin is not None:
            norm = norm.full_tensor()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.moves_target:
            self.model.update_target_network(self.target_decay(number))
        return norm

    @cached_property
    def _peak_flops(self) -> float:
        return peak_flops(self.launch.device, self.precision) * self.launch.world_size

    def utilisation(self, clips_per_second: float) -> float:
        """Share of the devices' peak that a speed takes (MFU): the model's arithmetic, a teacher's not counted."""
        return clips_per_second * self.flops_per_clip / self._peak_flops

    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite may come from loss scaling, which then lowers its factor by itself."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def target_decay(self, number: int) -> float:
        """EMA decay at an update of the run."""
        updates = self.plan.updates_per_epoch * self.args.epochs
        return ema_decay(number, updates, self.args.ema_decay_init, self.args.ema_decay)

    def set_learning_rate(self, position: float) -> float:
        """Set and return the rate at a position in epochs."""
        args = self.args
        lr = learning_rate(position, self.peak_lr, args.min_lr, args.warmup_epochs, args.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr


class LossMeter:
    """Sums of an epoch's losses, kept on the device between reports.

    Args:
        state: what `state()` of an interrupted epoch's meter gave.

    Attributes:
        recent, norms: losses `[terms]` of each step, and the gradient norm of each update, since the last report.
        skipped: clips that were passed over in this epoch (--skip_bad_files).
    """

    def __init__(self, state: dict | None = None):
        state = state or {"sums": None, "count": 0, "skipped": 0}
        self.sums = None if state["sums"] is None else torch.tensor(state["sums"], dtype=torch.float64)
        self.count, self.skipped = state["count"], state["skipped"]
        self.recent: list[torch.Tensor] = []
        self.norms: list[torch.Tensor] = []
        self._batches: list[Batch] = []

    def add(self, terms: torch.Tensor, batch: Batch) -> None:
        """Count one step's losses `[terms]` and remember which samples it was made of."""
        self.recent.append(terms)
        self._batches.append({name: batch[name] for name in ("index", "skipped") if name in batch})

    @property
    def unreported(self) -> int:
        """Steps since the last report."""
        return len(self.recent)

    def report(self, norms_may_overflow: bool = False) -> torch.Tensor:
        """Mean losses over all ranks since the last report `[terms]`: where the host waits for the device.

        Args:
            norms_may_overflow: gradients that are not finite are another's business (loss scaling's).

        Raises:
            NonFiniteLoss: on every rank, where a loss or a gradient of one of them is not finite.
        """
        recent = torch.stack(self.recent).cpu().double()
        skipped = sum(int(batch["skipped"]) for batch in self._batches if "skipped" in batch)
        summed = sum_over_ranks(torch.cat([recent.sum(dim=0), torch.tensor([len(recent), skipped], dtype=torch.float64)]))
        if not summed.isfinite().all():
            raise NonFiniteLoss(f"losses of the last {len(recent)} steps: {recent[:, 0].tolist()}")
        if not norms_may_overflow and not torch.stack(self.norms).isfinite().all():
            raise NonFiniteLoss(f"gradient norms of the last {len(self.norms)} updates: {torch.stack(self.norms).tolist()}")
        self.sums = summed[:-2] if self.sums is None else self.sums + summed[:-2]
        self.count += int(summed[-2])
        self.skipped += int(summed[-1])
        self.recent.clear()
        self.norms.clear()
        self._batches.clear()
        return summed[:-2] / summed[-2]

    def suspects(self) -> tuple[int, list[int]]:
        """This rank's first unreported step with a loss, else update with a gradient, that is not finite.

        Returns:
            the step, counted from the last report (beyond all steps where there is none), and its sample indices.
        """
        for step, (terms, batch) in enumerate(zip(self.recent, self._batches, strict=True)):
            if not terms.isfinite().all():
                return step, batch["index"].tolist()
        per_update = len(self._batches) // max(len(self.norms), 1)
        for number, norm in enumerate(self.norms):
            if not norm.isfinite():
                group = self._batches[number * per_update : (number + 1) * per_update]
                return number * per_update, torch.cat([batch["index"] for batch in group]).tolist()
        return len(self.recent), []

    def means(self) -> dict[str, float]:
        """Means over the epoch so far, by name."""
        means = {f"train_{name}": value for name, value in zip(TERM_NAMES, (self.sums / self.count).tolist(), strict=False)}
        return means | ({"skipped_files": self.skipped} if self.skipped else {})

    def state(self) -> dict:
        """What an interrupted epoch needs to go on."""
        sums = None if self.sums is None else self.sums.tolist()
        return {"sums": sums, "count": self.count, "skipped": self.skipped}
