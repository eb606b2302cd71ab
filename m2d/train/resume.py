"""Going on with a run: from its own newest checkpoint (--auto_resume), or from any checkpoint (--resume)."""

import logging
from argparse import Namespace
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from ..checkpoint.file import load_file, resolve
from ..checkpoint.weights import POSITIONS, load_into, read_weights
from ..data.clip_list import columns_digest
from ..data.dataset import AudioDataset
from ..utils.errors import UserError
from .optim import load_optimizer
from .trainer import Trainer

#: Settings that may change when a run goes on: they do not touch what is learned from here on ...
FREE = set(
    "accum_iter auto_resume batch_size csv_val eval_after feature_eval_freq force_start_epoch fsdp keep_last log_dir num_workers "
    "output_dir pin_mem resume save_freq save_minutes stop_at".split()
)
#: ... or change it in a way that a person may want, if only in rounding; the log says so.
SOUND = set(
    "activation_checkpointing clip_grad compile cuda_graphs data_path device epochs min_lr skip_bad_files weight_decay".split()
)

_PREDICTOR = ("decoder_", "mask_token")

logger = logging.getLogger("m2d")


def saved_settings(args: Namespace) -> dict[str, object]:
    """The settings as a checkpoint and run.json keep them: plain values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(args).items()}


def list_digests(data: AudioDataset) -> dict[str, str]:
    """A hash of each list that is learned from, by the flag that names it."""
    stores = {"csv_main": data.clips, "csv_bg_noise": data.noise}
    return {flag: columns_digest(store.columns) for flag, store in stores.items() if store is not None}


def check_same_run(checkpoint: Mapping[str, object], args: Namespace, facts: Mapping[str, object]) -> None:
    """Refuse settings or lists that would make a continued run another run.

    Args:
        checkpoint: the run's own, with its settings and facts.
        args: the settings given now.
        facts: as in the checkpoint: `effective_batch` and `lists` now.

    Raises:
        UserError: naming each such setting with both values, or the list that has changed.
    """
    saved, now = checkpoint["args"], saved_settings(args)
    saved_batch, effective_batch = checkpoint["effective_batch"], facts["effective_batch"]
    changed = {k: (saved[k], now[k]) for k in sorted(now.keys() & saved.keys()) if saved[k] != now[k] and k not in FREE}
    if saved_batch != effective_batch:
        changed["batch_size x accum_iter x processes"] = (saved_batch, effective_batch)
    refused = [f"--{k} was {was!r}, is {now!r}" for k, (was, now) in changed.items() if k not in SOUND]
    if refused:
        raise UserError(f"the run in the output folder cannot go on with other settings: {'; '.join(refused)}")
    for flag, digest in facts["lists"].items():
        if digest != checkpoint["lists"].get(flag, digest):
            raise UserError(
                f"the run in the output folder cannot go on: --{flag} {now[flag]} has changed since it began. "
                f"Restore that list, or start a new run from its weights (--resume, with another --output_dir)"
            )
    for flag, (was, is_now) in changed.items():
        logger.warning("going on with --%s %s, which was %s", flag, is_now, was)


def load_resumed_weights(model: nn.Module, args: Namespace) -> None:
    """Load the weights of --resume into the model and say what was loaded, new and unused.

    The parts of a predictor that another kind of model shapes differently (MAE's predicts pixels) start anew.
    """
    weights, own = read_weights(args.resume), model.state_dict()

    def fits(name: str) -> bool:
        if not name.startswith(_PREDICTOR) or name not in own:
            return True
        ours, theirs = own[name].shape, weights.state[name].shape
        return ours[-1] == theirs[-1] if name in POSITIONS else ours == theirs

    state = {name: tensor for name, tensor in weights.state.items() if fits(name)}
    report = load_into(model, state, take_norm_stats=args.norm_stats == "resume")
    report.unused.extend(name for name in weights.state if name not in state)
    logger.info("--resume %s: %s", args.resume, report)


def resumed_norm_stats(args: Namespace) -> tuple[float, float]:
    """The statistics in the checkpoint of --resume.

    Raises:
        UserError: it has none.
    """
    stats = read_weights(args.resume).norm_stats
    if stats is None:
        raise UserError(f"--norm_stats resume: {args.resume} holds no statistics")
    return float(stats[0]), float(stats[1])


class Position(NamedTuple):
    """Where a run starts or goes on: updates that are done, and the losses of the epoch under way."""

    updates: int
    meter: dict | None = None


def starting_point(trainer: Trainer, checkpoint: dict | None) -> Position:
    """Take up the state that the settings ask for.

    Args:
        trainer: a model at its start, or with the weights of --resume.
        checkpoint: the run's own newest checkpoint (--auto_resume), if there is one.

    Raises:
        UserError: --resume with --force_start_epoch -1 names a file without optimizer and epoch.
    """
    args, per_epoch = trainer.args, trainer.plan.updates_per_epoch
    if checkpoint is not None:
        trainer.model.load_state_dict(checkpoint["model"])
        take_up(trainer, checkpoint)
        return Position(checkpoint["updates"], checkpoint["meter"])
    if not args.resume:
        return Position(args.start_epoch * per_epoch)
    if args.force_start_epoch >= 0:
        return Position(args.force_start_epoch * per_epoch)
    checkpoint = load_file(resolve(args.resume))
    if not {"model", "optimizer", "epoch"} <= checkpoint.keys():
        raise UserError(
            f"--resume {args.resume} holds weights alone, no optimizer and epoch to go on from: "
            "--force_start_epoch 0 starts from its weights"
        )
    take_up(trainer, checkpoint)
    if checkpoint.get("updates_per_epoch") == per_epoch:
        return Position(checkpoint["updates"], checkpoint["meter"])
    return Position(checkpoint["epoch"] * per_epoch)


def take_up(trainer: Trainer, checkpoint: dict) -> None:
    """Optimizer and scaler of a training checkpoint."""
    load_optimizer(trainer.optimizer, trainer.model, checkpoint)
    if trainer.scaler.is_enabled() and checkpoint.get("scaler"):
        trainer.scaler.load_state_dict(checkpoint["scaler"])
