"""Settings that cannot work are refused before anything is created."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from ..data.mixture.spec import split_lists
from ..models import registry
from ..models.transformer.float8 import check_float8
from ..utils.addresses import is_address
from ..utils.errors import UserError
from .config import INFINITY, Settings
from .distributed.launch import world_size
from .monitoring.trackers import check_trackers

N_MELS = 80


def check(settings: Settings, families: Sequence[str]) -> None:
    """Refuse settings that cannot work.

    Args:
        settings: the settings.
        families: model families that the program trains.

    Raises:
        UserError: naming the flags.
    """
    _check_model(settings, families)
    _check_bounds(settings)
    _check_start(settings)
    _check_noise(settings)
    _check_offline(settings)
    _check_compilation(settings)
    _check_sharding(settings)
    _check_graphs(settings)
    _check_precision(settings)
    _check_lists(settings)
    _check_probe(settings)
    _check_trackers(settings)


def _check_model(settings: Settings, families: Sequence[str]) -> None:
    model = settings.model
    trainable = [name for name in registry.BUILDERS if name.split("_vit_")[0] in families]
    trainable = [name for name in trainable if not name.endswith(("_only", "patch16"))]
    if model.model not in trainable:
        raise UserError(f"--model {model.model}: {registry.closest(model.model, trainable)}")
    (mels, frames), (height, width) = model.input_shape, model.patch_shape
    if mels != N_MELS:
        raise UserError(f"--input_size {model.input_size}: log-mel spectrograms have {N_MELS} mel bands here")
    if settings.trains_text_encoder:
        _check_pair(settings)
        return
    if mels % height or frames % width:
        raise UserError(f"--input_size {model.input_size} is not a multiple of --patch_size {model.patch_size}")
    rows, columns = mels // height, frames // width
    visible = int(rows * columns * (1 - model.mask_ratio)) if 0 < model.mask_ratio < 1 else 0
    if visible in (0, rows * columns):
        raise UserError(f"--mask_ratio {model.mask_ratio}: of {rows * columns} patches some must stay visible, and some not")
    if model.cont_mask:
        hidden = int(columns * model.mask_ratio)
        if not 0 < model.cont_mask <= columns or not 0 < hidden < columns:
            raise UserError(f"--cont_mask {model.cont_mask}: --input_size has {columns} columns of patches, {hidden} to hide")


def _check_pair(settings: Settings) -> None:
    model, captions = settings.model, settings.captions
    if not (captions.base_model or captions.finetune):
        raise UserError("--base_model CHECKPOINT is missing: it gives the audio encoder (--finetune: an earlier stage)")
    if captions.base_model and captions.finetune:
        raise UserError("--base_model has no effect with --finetune, which brings the audio encoder too")
    if not 0 <= model.mask_ratio < 1:
        raise UserError(f"--mask_ratio {model.mask_ratio}: from 0, which masks nothing, to below 1")


def _check_bounds(settings: Settings) -> None:
    for group, setting in settings.each_field():
        value = getattr(group, setting.name)
        low, high = setting.metadata.get("low", -INFINITY), setting.metadata.get("high", INFINITY)
        if value is None or low == -INFINITY and high == INFINITY:
            continue
        if not (math.isfinite(value) and low <= value <= high):
            allowed = f"from {low} to {high}" if high < INFINITY else f"a number of at least {low}"
            raise UserError(f"--{setting.name} {value}: {allowed}")
    stop_at = settings.run.stop_at
    if stop_at < 1 and stop_at != -1:
        raise UserError(f"--stop_at {stop_at}: an epoch from 1 on, or -1")


def _check_start(settings: Settings) -> None:
    run = settings.run
    if run.start_epoch and run.resume:
        raise UserError("--start_epoch has no effect with --resume: --force_start_epoch says where a resumed run counts from")
    if run.resume_partial and not run.resume:
        raise UserError("--resume_partial has no effect without --resume")
    if run.force_start_epoch > 0 and not run.resume:
        raise UserError("--force_start_epoch has no effect without --resume: --start_epoch says where a new run counts from")
    if run.force_start_epoch < -1:
        raise UserError(f"--force_start_epoch {run.force_start_epoch}: an epoch, or -1 to continue from the checkpoint")
    for flag, epoch in (("start_epoch", run.start_epoch), ("force_start_epoch", run.force_start_epoch)):
        if epoch >= run.epochs:
            raise UserError(f"--{flag} {epoch} leaves nothing of --epochs {run.epochs}")
    if settings.data.norm_stats == "resume" and not run.resume:
        raise UserError("--norm_stats resume takes the statistics from the checkpoint of --resume: give --resume")


def _check_lists(settings: Settings) -> None:
    data = settings.data
    lists = {"csv_main": data.csv_main, "csv_bg_noise": data.csv_bg_noise if data.noise_ratio else "", "csv_val": data.csv_val}
    for flag, text in lists.items():
        for path, weight in split_lists(text) if text else ():
            if not is_address(path) and not Path(path).exists():
                raise UserError(f"--{flag} {path}: no such file; data/README.md says how to make a list")
            if weight != 1 and flag != "csv_main":
                raise UserError(f"--{flag} {path}:{weight:g}: only the lists of --csv_main have weights")


def _check_probe(settings: Settings) -> None:
    output = settings.output
    if output.keep_best and not output.probe:
        raise UserError("--keep_best needs --probe, labelled clips to judge by")
    if output.probe:
        from .monitoring.online_probe import probe_clips  # imports scikit-learn, which takes a second

        probe_clips(settings)


def _check_noise(settings: Settings) -> None:
    data, model = settings.data, settings.model
    if data.noise_ratio > 0 and not data.csv_bg_noise:
        raise UserError(f"--noise_ratio {data.noise_ratio} needs --csv_bg_noise, a list of background noise clips")
    if data.noise_ratio == 0 and data.csv_bg_noise and model.family != "m2d_s":  # which has a default list
        raise UserError("--csv_bg_noise has no effect without --noise_ratio, the share of noise in the mixed clips")
    if data.swap_inputs and not (model.teacher and data.noise_ratio > 0):
        raise UserError("--swap_inputs exchanges the inputs of student and teacher: it needs --teacher and --noise_ratio")


def _check_offline(settings: Settings) -> None:
    model, loss = settings.model, settings.loss
    if model.family == "m2d_x" and not model.teacher:
        raise UserError(f"--model {model.model} learns from a teacher: give --teacher CHECKPOINT, or train m2d_vit_*")
    if model.teacher and model.family != "m2d_x":
        raise UserError(f"--teacher has no effect with --model {model.model}: models with a teacher are m2d_x_vit_*")
    if model.family in ("m2d", "m2d_d2v") and loss.loss_m2d != 1:
        raise UserError(f"--loss_m2d {loss.loss_m2d} has no effect with --model {model.model}, which has that one loss")
    if model.family in ("m2d", "m2d_d2v") and loss.loss_off:
        raise UserError(f"--loss_off {loss.loss_off} needs a teacher: --model m2d_x_vit_* with --teacher CHECKPOINT")


def _check_compilation(settings: Settings) -> None:
    machine = settings.machine
    if machine.compile_blocks and machine.compile is False:
        raise UserError("--compile_blocks and --no_compile exclude each other")


def _check_graphs(settings: Settings) -> None:
    machine = settings.machine
    if not machine.cuda_graphs:
        return
    if machine.device in ("cpu", "mps") or not torch.cuda.is_available():
        raise UserError("--cuda_graphs needs a CUDA device: omit it here")
    if world_size() > 1:
        raise UserError("--cuda_graphs works in a run of one process: omit it here")
    if settings.run.accum_iter > 1:
        raise UserError("--cuda_graphs and --accum_iter do not work together here: omit one of them")


def _check_precision(settings: Settings) -> None:
    machine = settings.machine
    if not machine.fp8:
        return
    check_float8(torch.device("cuda" if machine.device == "auto" else machine.device))
    if not settings.optim.bf16:
        raise UserError("--fp8 needs --bf16: what is not computed in float8 needs the range of bfloat16")
    if machine.fsdp:
        raise UserError("--fp8 and --fsdp do not work together here: omit one of them")


def _check_sharding(settings: Settings) -> None:
    machine = settings.machine
    if not machine.fsdp:
        return
    if world_size() < 2:
        raise UserError("--fsdp shards a model across processes: start several by torchrun --nproc_per_node=N")
    if machine.compile or machine.compile_blocks:
        raise UserError("--compile and --fsdp do not work together here: omit one of them")
    if machine.device.startswith("cuda") and torch.cuda.is_available() and not settings.optim.bf16:
        raise UserError("--fsdp needs --bf16 on CUDA: float16's loss scaling does not support sharded gradients")


def _check_trackers(settings: Settings) -> None:
    output = settings.output
    if output.log_dir and "tensorboard" not in output.tracker:
        raise UserError("--log_dir has no effect without tensorboard in --tracker")
    check_trackers(output.tracker)
