"""From settings to a model in training: data, statistics, teacher, model, optimizer, processes."""

import logging
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel

from ..data.dataset import AudioDataset, Batch
from ..data.file_store import FileStore
from ..data.loader import BatchLoader
from ..data.norm_stats import cached_stats
from ..data.open import open_store
from ..data.sampler import EpochSampler
from ..models import registry
from ..models.onednn import use_onednn_if_faster
from ..utils.errors import UserError
from . import device as compute
from . import resume as continuation
from .batch_transform import BatchInputs, MaskRule
from .config import as_pair
from .distributed import Launch, from_rank0, in_step, together
from .fsdp import shard
from .optim import make_optimizer
from .program import Recipe
from .trainer import Trainer, precision_of

Stats = tuple[float, float]

logger = logging.getLogger("m2d")


@dataclass(frozen=True)
class DataSets:
    """What a run learns from, and what it is validated on."""

    train: AudioDataset
    val: AudioDataset | None


def open_data(recipe: Recipe, args: Namespace, launch: Launch) -> DataSets:
    """Open the lists, on every rank, and look whether their files are there, on rank 0."""

    def open_lists() -> DataSets:
        noise = open_store(args.csv_bg_noise, args.data_path, check=False) if getattr(args, "noise_ratio", 0) > 0 else None
        train = recipe.open_data(args, args.csv_main, noise, None)
        val = recipe.open_data(args, args.csv_val, noise, train) if args.csv_val else None
        return DataSets(train, val)

    data = together(launch, open_lists)
    datasets = [dataset for dataset in (data.train, data.val) if dataset is not None]
    for dataset in datasets:
        dataset.skip_bad_files = args.skip_bad_files
    stores = [data.train.noise, *(dataset.clips for dataset in datasets)]
    files = [store for store in stores if isinstance(store, FileStore)]
    from_rank0(launch, lambda: _check_present(files, args.skip_bad_files))
    return data


def _check_present(stores: Sequence[FileStore], skip_bad_files: bool) -> None:
    for store in stores:
        try:
            store.check_present()
        except FileNotFoundError as error:
            if not skip_bad_files:
                raise
            logger.warning("%s", error)


def make_plan(args: Namespace, data: AudioDataset, launch: Launch) -> EpochSampler:
    """Which samples make up each step.

    Raises:
        ValueError: there is not one whole update in an epoch, or --weighted for a list without weights.
    """
    weights = data.weights if getattr(args, "weighted", False) else None
    if getattr(args, "weighted", False) and weights is None:
        raise UserError(f"--weighted: {args.csv_main} has no column weight (util/make_as_weighted_list.py writes one)")
    return EpochSampler(len(data), args.batch_size, args.accum_iter, launch.rank, launch.world_size, args.seed, weights)


def normalisation(args: Namespace, data: AudioDataset, launch: Launch) -> tuple[Stats, Stats | None]:
    """Mean and std of the clips and of the background noise: given, or measured once for all ranks."""

    def decide() -> tuple[Stats, Stats | None]:
        if args.norm_stats is not None:
            given = continuation.resumed_norm_stats(args) if args.norm_stats == "resume" else args.norm_stats
            return given, given
        noise_stats = None
        if data.noise is not None:
            noise_stats = cached_stats(data.noise, data.input_frames, repeat=True, skip_bad=args.skip_bad_files)
        return cached_stats(data.clips, data.input_frames, skip_bad=args.skip_bad_files), noise_stats

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
    if args.loss_off == 0:
        logger.warning("--loss_off 0: the teacher's features have no weight in the loss")
    from ..inference.runtime import RuntimeM2D  # costs seconds to import, and only M2D-X has a teacher

    torch.manual_seed(args.seed)  # for a teacher of random weights
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
    return registry.build(args.model, **options)


def make_trainer(
    args: Namespace,
    data: AudioDataset,
    plan: EpochSampler,
    stats: Stats,
    noise_stats: Stats | None,
    launch: Launch,
    load_weights: bool = True,
) -> Trainer:
    """A model in training, at its start; with the weights of --resume unless they are to come from elsewhere."""
    compute.configure(launch.device)
    teacher, feature_width = load_teacher(args, launch.device)
    model = build_model(args, stats, feature_width or data.target_width)
    if args.resume and load_weights:
        continuation.load_resumed_weights(model, args)
    model.to(launch.device)
    if launch.device.type == "cpu":
        use_onednn_if_faster(model)
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
    if args.compile if args.compile is not None else launch.device.type == "cuda" and not getattr(args, "fsdp", False):
        first_batch = data.__getitems__(next(plan.batches(epoch=0)))
        cuda_graphs = getattr(args, "cuda_graphs", False)
        compute.try_compile(model, lambda: trainer.losses(model, first_batch)[0].backward(), cuda_graphs)
    return trainer


def connect(trainer: Trainer, data: AudioDataset) -> None:
    """Wrap the model for the processes of a run, which then hold the same weights, or each its share of them."""
    launch = trainer.launch
    if getattr(trainer.args, "fsdp", False):
        shard(trainer)
    elif launch.world_size > 1:
        devices = [launch.device] if launch.device.type == "cuda" else None
        trainer.parallel = DistributedDataParallel(
            trainer.model, device_ids=devices, gradient_as_bucket_view=True, static_graph=True
        )
        _settle_buckets(trainer, data)


def _settle_buckets(trainer: Trainer, data: AudioDataset) -> None:
    """Two steps that teach nothing.

    In its first step DDP learns the graph, and then lays its buckets out anew. The sums of three and more processes depend
    on that, so a continued run's first step would not be that of a run that was never interrupted. After one such step
    alone three processes with accumulated steps still differed.
    """
    batch = together(trainer.launch, lambda: data.__getitems__(next(trainer.plan.batches(epoch=0))))
    for _ in range(2):
        trainer.forward_backward(batch, synchronise=True)
        trainer.optimizer.zero_grad(set_to_none=True)


class TrainingBatches:
    """This rank's batches of any epoch, from any step, read ahead by threads that live as long as the run."""

    def __init__(self, data: AudioDataset, plan: EpochSampler, args: Namespace, device: torch.device):
        self._plan = plan
        self._loader = BatchLoader(data, args.num_workers, pin_memory=args.pin_mem and device.type == "cuda")

    def of(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from a step on.

        Raises:
            ReadError: on all ranks, where a clip of one rank's batch cannot be read.
        """
        return in_step(self._loader.batches(self._plan.batches(epoch, first_step)))

    def close(self) -> None:
        """End the threads."""
        self._loader.close()
