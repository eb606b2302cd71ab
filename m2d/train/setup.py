"""From settings to a model in training: data, statistics, teacher, model, optimizer, processes."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from ..data.batch import Batch
from ..data.captions.dataset import CaptionDataset
from ..data.dataset import AudioDataset
from ..data.file_store import FileStore
from ..data.loader import BatchLoader, on_device
from ..data.mixture.store import MixedStore
from ..data.norm_stats import cached_stats
from ..data.open import open_store
from ..data.sampler import EpochSampler, MixedOrder
from ..models import registry
from ..models.masked_vit import MaskedPredictorViT
from ..models.transformer.onednn import use_onednn_if_faster
from ..utils.errors import UserError
from .batch_transform import BatchTransform, MaskRule
from .config import Settings
from .device import choose_computation, configure, precision_of, try_compile
from .distributed.collectives import from_rank0, gather_rows, lockstep, run_on_all_ranks
from .distributed.fsdp import shard
from .distributed.launch import Launch
from .graphs import try_graphs
from .metrics import Throughput
from .optim import make_optimizer
from .pair import build_pair, checkpoint_stats
from .programs import Program
from .resume import load_resumed_weights, resumed_norm_stats
from .trainer import Trainer

Stats = tuple[float, float]

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class DataSets:
    """What a run learns from, and what it is validated on."""

    train: AudioDataset
    val: AudioDataset | None


def open_data(program: Program, settings: Settings, launch: Launch) -> DataSets:
    """Open the lists, on every rank, and look whether their files are there, on rank 0."""
    paths, skip = settings.data, settings.data.skip_bad_files

    def open_lists() -> DataSets:
        noise = open_store(paths.csv_bg_noise, paths.data_path, check=False) if paths.noise_ratio > 0 else None
        train = program.open_data(settings, paths.csv_main, noise, None)
        val = program.open_data(settings, paths.csv_val, noise, train) if paths.csv_val else None
        return DataSets(train, val)

    data = run_on_all_ranks(launch, open_lists)
    datasets = [dataset for dataset in (data.train, data.val) if dataset is not None]
    for dataset in datasets:
        dataset.skip_bad_files = skip
    stores = [data.train.noise, *(dataset.clips for dataset in datasets)]
    parts = [part for store in stores if store is not None for part in store.parts]
    files = [part for part in parts if isinstance(part, FileStore)]
    from_rank0(launch, lambda: _check_present(files, skip))
    return data


def _check_present(stores: Sequence[FileStore], skip_bad_files: bool) -> None:
    for store in stores:
        try:
            store.check_present()
        except FileNotFoundError as error:
            if not skip_bad_files:
                raise
            logger.warning("%s", error)


def make_sampler(settings: Settings, data: AudioDataset, launch: Launch) -> EpochSampler:
    """Which samples make up each step.

    Raises:
        ValueError: there is not one whole update in an epoch, or --weighted for a list without weights.
    """
    run, weights = settings.run, data.weights if settings.data.weighted else None
    if settings.data.weighted and weights is None:
        raise UserError(f"--weighted: {settings.data.csv_main} has no column weight (util/make_as_weighted_list.py writes one)")
    mixed = None
    if isinstance(data.clips, MixedStore) and data.clips.is_weighted:
        if weights is None:
            mixed = MixedOrder(run.seed, data.clips.counts, data.clips.weights, len(data))
        else:
            weights = weights * np.repeat(data.clips.weights, data.clips.counts)
    return EpochSampler(len(data), run.batch_size, run.accum_iter, launch.rank, launch.world_size, run.seed, weights, mixed)


def normalisation(settings: Settings, data: AudioDataset, launch: Launch) -> tuple[Stats, Stats | None]:
    """Mean and std of the clips and of the background noise: given, or measured once for all ranks."""
    given, skip = settings.data.norm_stats, settings.data.skip_bad_files

    def decide() -> tuple[Stats, Stats | None]:
        if given is not None:
            stats = resumed_norm_stats(settings.run.resume) if isinstance(given, str) else given
            return stats, stats
        if settings.trains_text_encoder:
            stats = checkpoint_stats(settings)
            return stats, stats
        noise_stats = None
        if data.noise is not None:
            noise_stats = cached_stats(data.noise, data.input_frames, repeat=True, skip_bad=skip)
        return cached_stats(data.clips, data.input_frames, skip_bad=skip), noise_stats

    stats, noise_stats = from_rank0(launch, decide)
    logger.info("log-mel values: mean %.4f, standard deviation %.4f", *stats)
    return stats, noise_stats


def load_teacher(settings: Settings, device: torch.device) -> tuple[torch.nn.Module | None, int | None]:
    """The teacher of --teacher and the width of its features; its time steps are compared with the student's.

    Raises:
        UserError: another sampling rate, or another number of time steps.
    """
    student, path = settings.model, settings.model.teacher
    if not path:
        return None, None
    if settings.loss.loss_off == 0:
        logger.warning("--loss_off 0: the teacher's features have no weight in the loss")
    from ..inference.runtime import RuntimeM2D  # takes seconds to import, and only M2D-X has a teacher

    torch.manual_seed(settings.run.seed)  # for a teacher of random weights
    teacher = RuntimeM2D(weight_file=path).to(device).eval().requires_grad_(False)
    if teacher.cfg.sr != student.sr:
        raise UserError(f"--teacher {path} was trained at {teacher.cfg.sr}, this run's data are at --sr {student.sr}")
    mels, frames = student.input_shape
    steps = frames // student.patch_shape[1]
    with torch.no_grad():
        features = teacher.encode_lms(torch.zeros(1, 1, mels, frames, device=device))
    if features.shape[1] != steps:
        raise UserError(
            f"--teacher {path} gives {features.shape[1]} time steps for {frames} frames, the student {steps} "
            f"(--patch_size {student.patch_size}): both need patches of the same number of frames"
        )
    return teacher, features.shape[2]


def build_model(settings: Settings, stats: Stats, target_width: int | None) -> MaskedPredictorViT:
    """The model of the settings, the same start on all ranks."""
    torch.manual_seed(settings.run.seed)
    model, loss = settings.model, settings.loss
    options = dict(
        img_size=model.input_shape,
        patch_size=model.patch_shape,
        decoder_depth=model.decoder_depth,
        norm_pix_loss=loss.norm_pix_loss,
        norm_stats=stats,
        loss_type=loss.loss_fn,
        target_layers=model.target_layers,
        loss_m2d=loss.loss_m2d,
        loss_off=loss.loss_off,
        sem_mode=settings.captions.sem_mode,
    )
    if target_width is not None:
        options["off_emb_dim"] = target_width
    return cast(MaskedPredictorViT, registry.build(model.model, **options))


def make_trainer(
    settings: Settings,
    data: AudioDataset,
    sampler: EpochSampler,
    stats: Stats,
    noise_stats: Stats | None,
    launch: Launch,
    load_weights: bool = True,
) -> Trainer:
    """A model in training, at its start; with the weights of --resume unless they are to come from elsewhere."""
    device, optim, machine = launch.device, settings.optim, settings.machine
    configure(device)
    teacher, feature_width = load_teacher(settings, device)
    if isinstance(data, CaptionDataset) and settings.trains_text_encoder:
        model = build_pair(settings, stats, data, load_weights)
    else:
        model = build_model(settings, stats, feature_width or data.target_width)
    if settings.run.resume and load_weights:
        load_resumed_weights(model, settings)
    model.to(device)
    if device.type == "cpu":
        use_onednn_if_faster(model)
    compilation = choose_computation(model, machine, device)
    mask = MaskRule(
        model.grid_size(),
        settings.model.mask_ratio,
        settings.run.seed,
        settings.model.cont_mask,
        structured=settings.trains_text_encoder,
        per_update=sampler.per_update,
    )
    noise = (noise_stats, settings.data.noise_ratio, settings.data.swap_inputs)
    trainer = Trainer(
        settings=settings,
        launch=launch,
        model=model,
        ddp_model=model,
        optimizer=make_optimizer(model, optim),
        scaler=torch.amp.GradScaler(device.type, enabled=precision_of(device, optim.bf16) == torch.float16),
        transform=BatchTransform(device, mask, stats, *noise, teacher),
        sampler=sampler,
        peak_lr=optim.blr * sampler.per_update / 256 if optim.lr is None else optim.lr,
    )
    if compilation or machine.cuda_graphs:
        first_batch = data.__getitems__(next(sampler.batches(epoch=0)))
        if compilation:
            try_compile(model, lambda: trainer.losses(model, first_batch)["loss"].backward(), by_block=compilation == "blocks")
        if machine.cuda_graphs:
            with trainer.autocast(cache=False):
                trainer.graphed_losses = try_graphs(model, trainer.transform(first_batch))
    return trainer


def wrap_distributed(trainer: Trainer, data: AudioDataset) -> None:
    """Wrap the model in DDP, or shard it with FSDP, where the run has several processes."""
    launch = trainer.launch
    if trainer.settings.machine.fsdp:
        shard(trainer)
    elif launch.world_size > 1:
        if trainer.model.is_contrastive:
            trainer.model.gather = partial(gather_rows, published=trainer.settings.captions.published_gradient)
        devices = [launch.device] if launch.device.type == "cuda" else None
        trainer.ddp_model = DistributedDataParallel(
            trainer.model, device_ids=devices, gradient_as_bucket_view=True, static_graph=True
        )
        _rebuild_buckets(trainer, data)


def _rebuild_buckets(trainer: Trainer, data: AudioDataset) -> None:
    """Two dummy passes, so that DDP finishes rebuilding its buckets.

    Without them a resumed run on 3 ranks is not bit-identical, since sums over three and more ranks depend on the buckets;
    with accumulated steps, one pass is not enough.
    """
    batch = run_on_all_ranks(trainer.launch, lambda: data.__getitems__(next(trainer.sampler.batches(epoch=0))))
    for _ in range(2):
        trainer.forward_backward(batch, synchronize=True)
        trainer.optimizer.zero_grad(set_to_none=True)


class TrainingBatches:
    """This rank's batches of the rest of a run, on the device.

    Threads that live as long as the run read ahead, across the ends of epochs too: the next epoch's first batches are there
    when it begins.

    Args:
        data, sampler, settings, device: the run's.
        start: the first (epoch, step).
        last_epoch: the epoch before which the run ends.
    """

    def __init__(
        self,
        data: AudioDataset,
        sampler: EpochSampler,
        settings: Settings,
        device: torch.device,
        start: tuple[int, int],
        last_epoch: int,
    ):
        machine, (first, step) = settings.machine, start
        self._loader = BatchLoader(data, machine.num_workers, pin_memory=machine.pin_mem and device.type == "cuda")
        keys = (batch for epoch in range(first, last_epoch) for batch in sampler.batches(epoch, step if epoch == first else 0))
        self._batches = on_device(lockstep(self._loader.batches(keys)), device)
        self._steps, self._step = sampler.steps_per_epoch, step

    def rest_of_epoch(self, throughput: Throughput) -> Iterator[Batch]:
        """The batches to the end of the present epoch; the time spent waiting for each goes to `throughput`.

        Raises:
            ReadError: on all ranks, where a clip of one rank's batch cannot be read.
        """
        left, self._step = self._steps - self._step, 0
        return throughput.timed(islice(self._batches, left))

    def close(self) -> None:
        """End the threads."""
        self._batches.close()
        self._loader.close()
