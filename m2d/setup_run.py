"""From settings to a model in training: data, statistics, teacher, model, optimizer, processes."""

import logging
import multiprocessing
import signal
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from . import compute, continuation, models_mae
from .audio_dataset import AudioDataset, Batch, as_is
from .clip_store import open_store
from .distributed import Launch, from_rank0
from .errors import UserError
from .inputs import BatchInputs, MaskRule
from .optimizer import make_optimizer
from .options import as_pair
from .recipe import Recipe
from .sampling import EpochPlan, SampleKey
from .statistics import cached_stats
from .stop_signal import SIGNALS
from .trainer import Trainer, precision_of

Stats = tuple[float, float]

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class DataSets:
    """What a run learns from, and what it is validated on."""

    train: AudioDataset
    val: AudioDataset | None


def open_data(recipe: Recipe, args: Namespace, launch: Launch) -> DataSets:
    """Open the lists and look whether their files are there."""
    noise = open_store(args.csv_bg_noise, args.data_path) if getattr(args, "noise_ratio", 0) > 0 else None
    train = recipe.open_data(args, args.csv_main, noise, None)
    val = recipe.open_data(args, args.csv_val, noise, train) if args.csv_val else None
    stores = [dataset.clips for dataset in (train, val) if dataset is not None] + ([noise] if noise else [])

    def check_present() -> None:
        for store in stores:
            store.check_present()

    from_rank0(launch, check_present)
    return DataSets(train, val)


def normalisation(args: Namespace, data: AudioDataset, launch: Launch) -> tuple[Stats, Stats | None]:
    """Mean and std of the clips and of the background noise: given, or measured once for all ranks."""

    def decide() -> tuple[Stats, Stats | None]:
        if args.norm_stats is not None:
            given = continuation.resumed_norm_stats(args) if args.norm_stats == "resume" else args.norm_stats
            return given, given
        noise_stats = None
        if data.noise is not None:
            noise_stats = cached_stats(data.noise, data.input_frames, repeat=True)
        return cached_stats(data.clips, data.input_frames), noise_stats

    stats, noise_stats = from_rank0(launch, decide)
    logger.info("log-mel values: mean %.4f, standard deviation %.4f", *stats)
    return stats, noise_stats


def load_teacher(args: Namespace, device: torch.device) -> tuple[torch.nn.Module | None, int | None]:
    """The teacher of --teacher and the width of its features; its time steps are compared with the student's.

    Raises:
        UserError: another sampling rate, or another number of time steps.
    """
    if not getattr(args, "teacher", ""):
        return None, None
    from .runtime_audio import RuntimeM2D  # costs seconds to import, and only M2D-X has a teacher

    teacher = RuntimeM2D(weight_file=args.teacher).to(device).eval().requires_grad_(False)
    if teacher.cfg.sr != args.sr:
        raise UserError(f"--teacher {args.teacher} was trained at {teacher.cfg.sr}, this run's data are at --sr {args.sr}")
    mels, frames = as_pair(args.input_size)
    steps = frames // as_pair(args.patch_size)[1]
    with torch.no_grad():
        features = teacher.encode_lms(torch.zeros(1, 1, mels, frames, device=device))
    if features.shape[1] != steps:
        raise UserError(
            f"--teacher {args.teacher} gives {features.shape[1]} time steps for {frames} frames, the student {steps} "
            f"(--patch_size {args.patch_size}): both need patches of the same number of frames"
        )
    return teacher, features.shape[2]


def build_model(args: Namespace, stats: Stats, target_width: int | None) -> torch.nn.Module:
    """The model of the settings, the same start on all ranks."""
    torch.manual_seed(args.seed)
    options = dict(
        img_size=as_pair(args.input_size),
        patch_size=as_pair(args.patch_size),
        decoder_depth=args.decoder_depth,
        norm_pix_loss=args.norm_pix_loss,
        norm_stats=stats,
    )
    for option, flag in (("loss_type", "loss_fn"), ("target_layers",) * 2, ("loss_m2d",) * 2, ("loss_off",) * 2):
        if hasattr(args, flag):
            options[option] = getattr(args, flag)
    if target_width is not None:
        options["off_emb_dim"] = target_width
    return models_mae.build(args.model, **options)


def make_trainer(
    args: Namespace, data: AudioDataset, stats: Stats, noise_stats: Stats | None, launch: Launch, load_weights: bool = True
) -> Trainer:
    """A model in training, at its start; with the weights of --resume unless they are to come from elsewhere."""
    compute.configure(launch.device)
    plan = EpochPlan(
        len(data),
        args.batch_size,
        args.accum_iter,
        launch.rank,
        launch.world_size,
        args.seed,
        weights=data.weights if getattr(args, "weighted", False) else None,
    )
    teacher, feature_width = load_teacher(args, launch.device)
    model = build_model(args, stats, feature_width or data.target_width)
    if args.resume and load_weights:
        continuation.load_resumed_weights(model, args)
    model.to(launch.device)
    model.recompute_activations(args.activation_checkpointing)
    mask = MaskRule(model.grid_size(), args.mask_ratio, args.seed, args.cont_mask)
    noise = (noise_stats, getattr(args, "noise_ratio", 0.0), getattr(args, "swap_inputs", False))
    use_scaler = precision_of(args, launch.device) == torch.float16
    trainer = Trainer(
        args=args,
        launch=launch,
        model=model,
        parallel=model,
        optimizer=make_optimizer(model, args),
        scaler=torch.amp.GradScaler(launch.device.type, enabled=use_scaler),
        inputs=BatchInputs(launch.device, mask, stats, *noise, teacher),
        plan=plan,
        peak_lr=args.blr * plan.per_update / 256 if args.lr is None else args.lr,
    )
    if args.compile if args.compile is not None else launch.device.type == "cuda":
        first_batch = data.__getitems__(next(plan.batches(epoch=0)))
        compute.try_compile(model, lambda: trainer.losses(model, first_batch)[0].backward())
    if launch.world_size > 1:
        devices = [launch.device] if launch.device.type == "cuda" else None
        trainer.parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    return trainer


def _ignore_signals(_worker: int) -> None:
    """Loader workers leave the word to stop to the training process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Keys:
    """The batch sampler that a DataLoader iterates anew for each epoch: what its workers are asked for."""

    def __init__(self, plan: EpochPlan):
        self.plan, self.epoch, self.first_step = plan, 0, 0

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return self.plan.batches(self.epoch, self.first_step)


class TrainingBatches:
    """This rank's batches of any epoch, from any step, loaded by workers that live as long as the run."""

    def __init__(self, data: AudioDataset, plan: EpochPlan, args: Namespace, device: torch.device):
        self._keys = _Keys(plan)
        self._loader = DataLoader(
            data,
            batch_sampler=self._keys,
            num_workers=args.num_workers,
            collate_fn=as_is,
            pin_memory=args.pin_mem and device.type == "cuda",
            persistent_workers=args.num_workers > 0,
            worker_init_fn=_ignore_signals,
        )

    def of(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on."""
        self._keys.epoch, self._keys.first_step = epoch, first_step
        return iter(self._loader)

    def close(self) -> None:
        """End the workers; they heed no signal but SIGKILL, and hold nothing."""
        if self._loader._iterator is not None:
            self._loader._iterator._shutdown_workers()
        for worker in multiprocessing.active_children():
            worker.kill()
