"""One training step (forward, backward, update) in the run's precision and on all its processes; the state of a run."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ..data.batch import Batch
from ..data.sampler import EpochSampler
from ..models.masked_vit import MaskedPredictorViT
from .batch_transform import BatchTransform
from .config import Settings
from .cost import peak_flops, step_flops
from .device import precision_of
from .distributed.fsdp import full_state
from .distributed.launch import Launch
from .graphs import LossesOf
from .metrics import LossMeter
from .optim import ema_decay, learning_rate

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass
class Trainer:
    """A model in training.

    Attributes:
        model, ddp_model: the model, and the same wrapped in DDP where there are several processes.
        transform: makes a model's inputs from a batch.
        sampler: which samples make up each step.
        peak_lr: the highest learning rate.
        full_model: where the model is sharded (FSDP), a whole one for evaluation.
        graphed_losses: in place of the model in training, its losses by CUDA graphs.
    """

    settings: Settings
    launch: Launch
    model: Any  # of the program's families; with FSDP's methods where it is sharded
    ddp_model: Any
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    transform: BatchTransform
    sampler: EpochSampler
    peak_lr: float
    full_model: MaskedPredictorViT | None = None
    graphed_losses: LossesOf | None = None

    def __post_init__(self):
        run, model = self.settings.run, self.settings.model
        self.precision = precision_of(self.launch.device, self.settings.optim.bf16)
        self.last_epoch = min(run.stop_at, run.epochs) if run.stop_at > 0 else run.epochs
        self.flops_per_clip = step_flops(self.model, model.mask_ratio)

    @property
    def has_ema_target(self) -> bool:
        """Whether the model has a target encoder that follows the online one."""
        return self.model.has_ema_target

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a shard of the weights (FSDP)."""
        return self.full_model is not None

    @property
    def trained(self) -> list[nn.Parameter]:
        """The trained parameters, in the optimizer's order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def autocast(self, cache: bool = True) -> torch.autocast:
        """Mixed precision where the run has it; with `cache` weights are cast once a step."""
        enabled = self.precision != torch.float32
        return torch.autocast(self.launch.device.type, self.precision, enabled=enabled, cache_enabled=cache)

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses of a batch through a model, by name."""
        with self.autocast():
            inputs = self.transform(batch)
            if self.graphed_losses and torch.is_grad_enabled():
                losses = self.graphed_losses(inputs)
            else:
                losses = self.model.named_losses(model(*inputs))
        return {name: loss.float() for name, loss in losses.items()}

    def forward_backward(self, batch: Batch, synchronize: bool) -> dict[str, torch.Tensor]:
        """Losses of a batch, whose gradients are added up; reduced over processes only with `synchronize`."""
        if self.is_sharded:
            self.model.set_requires_gradient_sync(synchronize)
        is_alone = self.ddp_model is self.model
        with nullcontext() if synchronize or is_alone else self.ddp_model.no_sync():
            losses = self.losses(self.ddp_model, batch)
            self.scaler.scale(losses["loss"] / self.sampler.accum_iter).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def update(self, number: int) -> torch.Tensor:
        """Clip, step the optimizer and move the target encoder; `number` counts a run's updates from 0.

        Returns:
            The gradient norm before clipping, a scalar on the device.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.trained, self.settings.optim.clip_grad or float("inf"))
        if self.is_sharded:
            norm = cast("DTensor", norm).full_tensor()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.has_ema_target:
            self.model.update_target_network(self.target_decay(number))
        if self.model.is_contrastive:
            self.model.clip_logit_scale()
        return norm

    @cached_property
    def peak_flops(self) -> float:
        """Operations per second that the devices of all processes could do."""
        return peak_flops(self.launch.device, self.precision) * self.launch.world_size

    def utilisation(self, clips_per_second: float) -> float:
        """Share of the devices' peak that a speed takes (MFU): the model's arithmetic, a teacher's not counted."""
        return clips_per_second * self.flops_per_clip / self.peak_flops

    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite may come from loss scaling, which then lowers its factor by itself."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    def target_decay(self, number: int) -> float:
        """EMA decay at an update of the run."""
        model, updates = self.settings.model, self.sampler.updates_per_epoch * self.settings.run.epochs
        return ema_decay(number, updates, model.ema_decay_init, model.ema_decay)

    def set_learning_rate(self, position: float) -> None:
        """Set the rate at a position in epochs."""
        optim, epochs = self.settings.optim, self.settings.run.epochs
        lr = learning_rate(position, self.peak_lr, optim.min_lr, optim.warmup_epochs, epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    @property
    def lr(self) -> float:
        """The present learning rate."""
        return self.optimizer.param_groups[0]["lr"]

    def rates(self, number: int) -> dict[str, float]:
        """What is set or learned beside the weights, by name, at an update of the run: `lr`, `ema_decay`, `logit_scale`."""
        rates = {"lr": self.lr}
        if self.has_ema_target:
            rates["ema_decay"] = self.target_decay(number)
        if self.model.is_contrastive:
            rates["logit_scale"] = self.model.logit_scale.item()
        return rates


@dataclass
class TrainState:
    """What a run is at an update: all that a checkpoint holds.

    Attributes:
        trainer: model, optimizer and loss scaling.
        metadata: what checkpoints hold of the data: digests of the lists, statistics, classes.
        updates: updates done since the run's beginning.
        meter: losses of the current epoch.
        best_probe: the best linear probe so far.
    """

    trainer: Trainer
    metadata: Mapping[str, object]
    updates: int = 0
    meter: LossMeter = field(default_factory=LossMeter)
    best_probe: float = -1.0

    def is_best(self, figures: Mapping[str, float]) -> bool:
        """Whether an epoch's linear probe is the best so far, which is then kept in mind."""
        value = figures.get("probe_linear", -1.0)
        if value <= self.best_probe:
            return False
        self.best_probe = value
        return True

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.updates // self.trainer.sampler.updates_per_epoch

    @property
    def step(self) -> int:
        """Steps done in it."""
        return self.updates % self.trainer.sampler.updates_per_epoch * self.trainer.sampler.accum_iter

    @property
    def position(self) -> float:
        """Epochs done, with their fraction."""
        return self.updates / self.trainer.sampler.updates_per_epoch

    def state_dict(self) -> Any:
        """What a checkpoint holds; all ranks call this where the model is sharded."""
        trainer = self.trainer
        state = {
            "model": trainer.model.state_dict(),
            "optimizer": trainer.optimizer.state_dict(),
            "epoch": self.epoch,
            "scaler": trainer.scaler.state_dict(),
            "args": trainer.settings.as_dict(),
            "updates": self.updates,
            "updates_per_epoch": trainer.sampler.updates_per_epoch,
            "meter": self.meter.state_dict(),
            "best_probe": self.best_probe,
            **self.metadata,
        }
        return full_state(state) if trainer.is_sharded else state
