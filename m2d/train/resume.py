"""Resuming a run: from its own newest checkpoint (--auto_resume), or from any checkpoint (--resume)."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..checkpoint.errors import MissingWeightsError
from ..checkpoint.training_state import load_training_state
from ..checkpoint.weights import POSITIONS, load_into, read_weights
from ..data.clip_list import columns_digest
from ..data.dataset import AudioDataset
from ..data.norm_stats import drawn_clips
from ..data.store import ClipStore
from ..utils.errors import UserError
from .config import Settings
from .metrics import LossMeter
from .optim import load_optimizer
from .trainer import Trainer, TrainState

#: Settings that may change when a run is resumed: they do not change what is learned from here on ...
FREE = set(
    "accum_iter auto_resume base_model batch_size csv_val eval_after feature_eval_freq finetune "
    "force_start_epoch fsdp keep_best keep_last log_dir num_workers output_dir pin_mem probe probe_freq rank_timeout "
    "resume resume_partial save_freq save_minutes stop_at tracker".split()
)
#: ... or change it in a way that a user may want, if only in rounding; a warning names them.
ALLOWED = set(
    "activation_checkpointing clip_grad compile compile_blocks cuda_graphs data_path device epochs min_lr recompute_gelu "
    "short_attention skip_bad_files weight_decay".split()
)

#: How many files of a list are compared when a run is resumed.
FILES_COMPARED = 64
_PREDICTOR = ("decoder_", "mask_token")

logger = logging.getLogger("m2d")


def list_digests(data: AudioDataset) -> dict[str, str]:
    """A hash of each list that is learned from, by the flag that names it."""
    return {flag: columns_digest(store.columns) for flag, store in _stores(data).items()} | dict(data.digests)


def file_digests(data: AudioDataset) -> dict[str, str]:
    """A hash of sizes and times of a sample of each list's files, by the flag that names the list."""
    digests = {}
    for flag, store in _stores(data).items():
        marks = store.file_marks(drawn_clips(store, FILES_COMPARED))
        digests[flag] = hashlib.sha256(marks.encode()).hexdigest()
    return digests


def _stores(data: AudioDataset) -> dict[str, ClipStore]:
    stores = {"csv_main": data.clips, "csv_bg_noise": data.noise}
    return {flag: store for flag, store in stores.items() if store is not None}


def check_same_run(checkpoint: Mapping[str, Any], settings: Settings, metadata: Mapping[str, Any]) -> None:
    """Refuse settings or lists that would make a resumed run another run.

    Args:
        checkpoint: the run's own, with its settings and metadata.
        settings: the settings given now.
        metadata: as in the checkpoint: `effective_batch`, `lists`, `files` and, where a loss compares clips, `step_batch` now.

    Raises:
        UserError: naming each such setting with both values, or the list that has changed.
    """
    saved, now = checkpoint["args"], settings.as_dict()
    saved_batch, effective_batch = checkpoint["effective_batch"], metadata["effective_batch"]
    changed = {k: (saved[k], now[k]) for k in sorted(now.keys() & saved.keys()) if saved[k] != now[k] and k not in FREE}
    if saved_batch != effective_batch:
        changed["batch_size x accum_iter x processes"] = (saved_batch, effective_batch)
    saved_step, step_batch = checkpoint.get("step_batch"), metadata.get("step_batch")
    if saved_step != step_batch:
        changed["batch_size x processes, the clips that a loss compares"] = (saved_step, step_batch)
    refused = [f"--{k} was {was!r}, is {now!r}" for k, (was, now) in changed.items() if k not in ALLOWED]
    if refused:
        raise UserError(f"the run in the output folder cannot be resumed with other settings: {'; '.join(refused)}")
    for flag, digest in metadata["lists"].items():
        if digest != checkpoint["lists"].get(flag, digest):
            raise UserError(
                f"the run in the output folder cannot be resumed: --{flag} {now[flag]} has changed since it began. "
                f"Restore that list, or start a new run from its weights (--resume, with another --output_dir)"
            )
    for flag, digest in metadata["files"].items():
        if digest != checkpoint.get("files", {}).get(flag, digest):
            logger.warning(
                "files of --%s %s have other sizes or times than when this run was saved (a sample was compared): "
                "where their content has changed, the resumed run is not the run that began",
                flag,
                now[flag],
            )
    for flag, (was, is_now) in changed.items():
        logger.warning("resuming with --%s %s, which was %s", flag, is_now, was)


def load_resumed_weights(model: nn.Module, settings: Settings) -> None:
    """Load the weights of --resume into the model and log what was loaded, new and unused.

    The parts of a predictor that another kind of model shapes differently (MAE's predicts pixels) keep their random start.
    """
    path = settings.run.resume
    weights, own = read_weights(path), model.state_dict()

    def fits(name: str) -> bool:
        if not name.startswith(_PREDICTOR) or name not in own:
            return True
        ours, theirs = own[name].shape, weights.state[name].shape
        return ours[-1] == theirs[-1] if name in POSITIONS else ours == theirs

    state = {name: tensor for name, tensor in weights.state.items() if fits(name)}
    take_norm_stats, allow_missing = settings.data.norm_stats == "resume", settings.run.resume_partial
    try:
        report = load_into(model, state, take_norm_stats, weights.mapped, allow_missing)
    except MissingWeightsError as error:
        raise UserError(f"--resume {path}: {error}; --resume_partial starts them at random") from None
    report.unused.extend(name for name in weights.state if name not in state)
    logger.info("--resume %s: %s", path, report)


def resumed_norm_stats(path: str) -> tuple[float, float]:
    """The statistics in the checkpoint of --resume.

    Raises:
        UserError: it has none.
    """
    stats = read_weights(path).norm_stats
    if stats is None:
        raise UserError(f"--norm_stats resume: {path} holds no statistics")
    return float(stats[0]), float(stats[1])


def start_state(trainer: Trainer, metadata: Mapping[str, object], checkpoint: dict | None) -> TrainState:
    """The state that the settings ask for: at the run's start, or loaded from a checkpoint.

    Args:
        trainer: a model at its start, or with the weights of --resume.
        metadata: what the run's checkpoints hold of the data.
        checkpoint: the run's own newest checkpoint (--auto_resume), if there is one.

    Raises:
        UserError: --resume with --force_start_epoch -1 names a file without optimizer and epoch.
    """
    run, per_epoch = trainer.settings.run, trainer.sampler.updates_per_epoch
    if checkpoint is not None:
        trainer.model.load_state_dict(checkpoint["model"])
        _load_optimizer(trainer, checkpoint)
        best = checkpoint.get("best_probe", -1.0)
        return TrainState(trainer, metadata, checkpoint["updates"], LossMeter(checkpoint["meter"]), best)
    if not run.resume:
        return TrainState(trainer, metadata, run.start_epoch * per_epoch)
    if run.force_start_epoch >= 0:
        return TrainState(trainer, metadata, run.force_start_epoch * per_epoch)
    checkpoint = load_training_state(run.resume)
    if not {"model", "optimizer", "epoch"} <= checkpoint.keys():
        raise UserError(
            f"--resume {run.resume} holds weights alone, no optimizer and epoch to continue from: "
            "--force_start_epoch 0 starts from its weights"
        )
    _load_optimizer(trainer, checkpoint)
    if checkpoint.get("updates_per_epoch") == per_epoch:
        return TrainState(trainer, metadata, checkpoint["updates"], LossMeter(checkpoint["meter"]))
    return TrainState(trainer, metadata, checkpoint["epoch"] * per_epoch)


def _load_optimizer(trainer: Trainer, checkpoint: dict) -> None:
    """Optimizer and loss scaling of a training checkpoint."""
    load_optimizer(trainer.optimizer, trainer.model, checkpoint)
    if trainer.scaler.is_enabled() and checkpoint.get("scaler"):
        trainer.scaler.load_state_dict(checkpoint["scaler"])
