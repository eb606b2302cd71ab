"""The flags of a pre-training run: one parser for the four programs, and what makes no sense refused."""

import argparse
import ast
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from ..audio.logmel_torch import PRESETS
from ..models import registry
from ..models.m2d import LOSS_TYPES
from ..utils.errors import UserError
from ..utils.program import ArgumentParser
from .distributed import world_size

N_MELS = 80
NOT_NEGATIVE = (
    "blr clip_grad cont_mask feature_eval_freq keep_last lr min_ds_size min_lr num_workers save_minutes start_epoch "
    "warmup_epochs weight_decay"
).split()


def size_pair(text: str) -> str:
    """A size such as 80x608 (mels x frames), checked and in its canonical form."""
    try:
        first, second = (int(part) for part in text.lower().replace(",", "x").split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 80x608 (mel bands x frames)") from None
    if first < 1 or second < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: sizes are positive")
    return f"{first}x{second}"


def as_pair(text: str) -> tuple[int, int]:
    """(mels, frames) of a checked size."""
    first, second = text.split("x")
    return int(first), int(second)


def _literal(text: str, what: str) -> list | tuple:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, (list, tuple)):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def norm_stats(text: str) -> tuple[float, float] | str:
    """Statistics given by hand, such as "[-7.1,4.2]", or the word resume."""
    if text == "resume":
        return text
    value = _literal(text, "a pair such as [-7.1,4.2], nor the word resume")
    if len(value) != 2 or not all(type(v) in (int, float) and math.isfinite(v) for v in value) or value[1] <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a mean and a positive standard deviation such as [-7.1,4.2]")
    return float(value[0]), float(value[1])


def layer_list(text: str) -> list[int]:
    """Block numbers such as "[0,2]"; an empty text for none."""
    value = _literal(text, "a list of block numbers such as [0,2]") if text else []
    if not all(type(v) is int for v in value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of block numbers such as [0,2]")
    return list(value)


def make_parser(prog: str, description: str, defaults: Mapping[str, object], without: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser of one program.

    Args:
        prog, description: for `--help`.
        defaults: the program's own defaults, by flag.
        without: flags that the program does not have.
    """
    shape = argparse.ArgumentDefaultsHelpFormatter
    parser = ArgumentParser(prog, description=description, formatter_class=shape)
    for add in (_add_run, _add_model, _add_loss, _add_optimizer, _add_data, _add_output, _add_machine):
        add(_Group(parser, add.__doc__, without))
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{flag: value for flag, value in defaults.items() if flag in known})
    return parser


class _Group:
    """An argument group that leaves out the flags a program does not have."""

    def __init__(self, parser: argparse.ArgumentParser, title: str, without: tuple[str, ...]):
        self._group, self._without = parser.add_argument_group(title), without

    def __call__(self, *flags: str, **options) -> None:
        if flags[0].lstrip("-") not in self._without:
            self._group.add_argument(*flags, **options)


def _add_run(add: _Group) -> None:
    """length of the run"""
    add("--batch_size", type=int, default=512, help="clips per process and step")
    add("--epochs", type=int, default=300, help="epochs of the full run")
    add("--accum_iter", type=int, default=1, help="steps whose gradients make one update")
    add("--stop_at", type=int, default=-1, help="end after this epoch with the schedule of the full run; -1: at the end")
    add("--start_epoch", type=int, default=0, help="count epochs from here (a run without --resume)")
    add("--resume", "--weights", default="", help="load weights from a checkpoint: a path or an https address")
    add(
        "--force_start_epoch",
        type=int,
        default=0,
        help="with --resume: count epochs from here; -1: go on from the checkpoint, optimizer and scaler included",
    )
    add("--seed", type=int, default=0, help="a run is a function of data, flags and seed")


def _add_model(add: _Group) -> None:
    """model"""
    add("--model", default="m2d_vit_base", help="a name of m2d.models_mae")
    add("--decoder_depth", type=int, default=8, help="blocks of the predictor")
    add("--input_size", type=size_pair, default="80x608", help="mel bands x frames")
    add("--patch_size", type=size_pair, default="16x16", help="mel bands x frames")
    add("--sr", choices=sorted(PRESETS), default="16k", help="sampling rate of the data")
    add("--mask_ratio", type=float, default=0.7, help="share of hidden patches")
    add("--cont_mask", type=int, default=0, help="hide whole time columns in runs of this many columns of patches; 0: at random")
    add("--ema_decay_init", type=float, default=0.99995, help="EMA decay of the target encoder at the first update")
    add("--ema_decay", type=float, default=0.99999, help="EMA decay of the target encoder at the last update")
    add("--target_layers", type=layer_list, default=[], help="blocks whose mean is the target, such as [0,2]; none: the last")
    add("--teacher", default="", help="M2D-X: the checkpoint whose features are the offline target")


def _add_loss(add: _Group) -> None:
    """loss"""
    add("--loss_fn", choices=LOSS_TYPES, default="norm_mse", help="loss of the prediction")
    add("--loss_m2d", type=float, default=1.0, help="weight of the M2D loss")
    add("--loss_off", type=float, default=0.0, help="weight of the offline loss")
    norm = dict(dest="norm_pix_loss", default=True)
    add("--norm_pix_loss", action="store_true", **norm, help="standardise each target vector")
    add("--no_norm_pix_loss", action="store_false", **norm, help="targets as they are")


def _add_optimizer(add: _Group) -> None:
    """optimizer"""
    add("--optim", choices=("adamw", "sgd"), default="adamw", help="the optimizer")
    add("--weight_decay", type=float, default=0.05, help="of matrices, with AdamW")
    add("--clip_grad", type=float, default=3.0, help="largest gradient norm; 0: no clipping")
    add("--lr", type=float, default=None, help="peak learning rate; none: blr x effective batch / 256")
    add("--blr", type=float, default=3e-4, help="peak learning rate per 256 clips of an update")
    add("--min_lr", type=float, default=0.0, help="learning rate at the end")
    add("--warmup_epochs", type=int, default=20, help="epochs of linear warm-up")
    add("--bf16", action="store_true", help="bfloat16 on CUDA, in place of float16 with loss scaling")


def _add_data(add: _Group) -> None:
    """data"""
    add("--data_path", default="data", help="the folder that the lists' file names start from")
    add("--csv_main", "--dataset", default="data/files_audioset.csv", help="the list of clips")
    add("--csv_bg_noise", default="", help="the list of background noise clips")
    add("--csv_val", default="", help="the list of validation clips (at most 2,048 are used)")
    add("--noise_ratio", type=float, default=0.0, help="share of background noise in the mixed clips")
    add("--weighted", action="store_true", help="draw clips in proportion to the list's column weight")
    add("--swap_inputs", action="store_true", help="the clean clip to the student, the mixed one to the teacher")
    add("--min_ds_size", type=int, default=10000, help="repeat a shorter list until it has so many entries; 0: never")
    add("--norm_stats", type=norm_stats, default=None, help='"[mean,std]" of the data; resume: those of --resume; none: measured')
    add("--no_random_crop", dest="random_crop", action="store_false", default=True, help="crop every clip at its beginning")
    add("--skip_bad_files", action="store_true", help="take the next clip in the place of one that cannot be read, and count it")


def _add_output(add: _Group) -> None:
    """output"""
    add("--output_dir", "--out", default="", help="folder of the run; none: named after the settings")
    add("--log_dir", default="", help="folder of the TensorBoard files; none: the run's")
    add("--auto_resume", action="store_true", help="go on with the run that is in the output folder, at its exact step")
    add("--save_minutes", type=float, default=10.0, help="minutes between writes of last.pth")
    add("--keep_last", type=int, default=0, help="keep so many of the newest checkpoint-N.pth; 0: all")
    add("--save_freq", type=int, default=100, help="epochs between checkpoints")
    add("--eval_after", type=int, default=50, help="evaluate checkpoints from this epoch on (quick_eval.sh)")
    add("--feature_eval_freq", "--eval_freq", type=int, default=10, help="epochs between label-free quality figures; 0: never")


def _add_machine(add: _Group) -> None:
    """machine"""
    add("--device", default="cuda", help="cuda (the CPU where there is none), mps or cpu")
    add("--num_workers", "--workers", type=int, default=8, help="threads that read ahead, per training process")
    add("--pin_mem", action="store_true", default=True, help="pin the loader's memory (CUDA)")
    add("--no_pin_mem", dest="pin_mem", action="store_false", help="do not")
    add("--compile", action="store_true", default=None, help="compile the model; none: on CUDA")
    add("--no_compile", dest="compile", action="store_false", help="do not")
    add(
        "--cuda_graphs",
        action="store_true",
        help="compiled, as CUDA graphs: for steps so short that starting kernels takes longest",
    )
    add("--fsdp", action="store_true", help="deal weights and optimizer state to the processes, for large models")
    add("--activation_checkpointing", action="store_true", help="compute activations again in the backward pass, to save memory")


def check(args: argparse.Namespace, families: tuple[str, ...]) -> None:
    """Refuse what cannot work, before anything is created.

    Args:
        args: the parsed flags.
        families: model families that the program trains.

    Raises:
        UserError: naming the flags.
    """
    _check_model(args, families)
    _check_numbers(args)
    _check_start(args)
    _check_noise(args)
    _check_offline(args)
    _check_sharding(args)
    _check_cuda_graphs(args)
    _check_lists(args)


def family_of(model: str) -> str:
    """m2d_x of m2d_x_vit_base."""
    return model.split("_vit_")[0]


def _check_model(args: argparse.Namespace, families: tuple[str, ...]) -> None:
    trainable = [name for name in registry.BUILDERS if family_of(name) in families and not name.endswith(("_only", "patch16"))]
    if args.model not in trainable:
        raise UserError(f"--model {args.model}: {registry.closest(args.model, trainable)}")
    (mels, frames), (height, width) = as_pair(args.input_size), as_pair(args.patch_size)
    if mels != N_MELS:
        raise UserError(f"--input_size {args.input_size}: log-mel spectrograms have {N_MELS} mel bands here")
    if mels % height or frames % width:
        raise UserError(f"--input_size {args.input_size} is not a multiple of --patch_size {args.patch_size}")
    rows, columns = mels // height, frames // width
    visible = int(rows * columns * (1 - args.mask_ratio)) if 0 < args.mask_ratio < 1 else 0
    if visible in (0, rows * columns):
        raise UserError(f"--mask_ratio {args.mask_ratio}: of {rows * columns} patches some must stay visible, and some not")
    if args.cont_mask:
        hidden = int(columns * args.mask_ratio)
        if not 0 < args.cont_mask <= columns or not 0 < hidden < columns:
            raise UserError(f"--cont_mask {args.cont_mask}: --input_size has {columns} columns of patches, {hidden} to hide")


def _check_numbers(args: argparse.Namespace) -> None:
    for flag in ("batch_size", "accum_iter", "epochs", "save_freq", "decoder_depth"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: at least 1")
    for flag in NOT_NEGATIVE:
        value = getattr(args, flag, 0)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"--{flag} {value}: a number of at least 0")
    for flag in ("ema_decay_init", "ema_decay"):
        if not 0 <= getattr(args, flag, 0) <= 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: from 0 to 1")
    if args.stop_at < 1 and args.stop_at != -1:
        raise UserError(f"--stop_at {args.stop_at}: an epoch from 1 on, or -1")


def _check_start(args: argparse.Namespace) -> None:
    if args.start_epoch and args.resume:
        raise UserError("--start_epoch has no effect with --resume: --force_start_epoch says where a resumed run counts from")
    if args.force_start_epoch > 0 and not args.resume:
        raise UserError("--force_start_epoch has no effect without --resume: --start_epoch says where a new run counts from")
    if args.force_start_epoch < -1:
        raise UserError(f"--force_start_epoch {args.force_start_epoch}: an epoch, or -1 to go on from the checkpoint")
    for flag in ("start_epoch", "force_start_epoch"):
        if getattr(args, flag) >= args.epochs:
            raise UserError(f"--{flag} {getattr(args, flag)} leaves nothing of --epochs {args.epochs}")
    if args.norm_stats == "resume" and not args.resume:
        raise UserError("--norm_stats resume takes the statistics of the checkpoint of --resume, which is not given")


def _check_lists(args: argparse.Namespace) -> None:
    for flag in ("csv_main", "csv_bg_noise", "csv_val") if getattr(args, "noise_ratio", 0) else ("csv_main", "csv_val"):
        path = getattr(args, flag, "")
        if path and not Path(path).exists():
            raise UserError(f"--{flag} {path}: no such file; data/README.md says how to make a list")


def _check_noise(args: argparse.Namespace) -> None:
    ratio = getattr(args, "noise_ratio", 0.0)
    if not 0 <= ratio <= 1:
        raise UserError(f"--noise_ratio {ratio}: from 0 to 1")
    if ratio > 0 and not args.csv_bg_noise:
        raise UserError(f"--noise_ratio {ratio} needs --csv_bg_noise, a list of background noise clips")
    if ratio == 0 and getattr(args, "csv_bg_noise", "") and family_of(args.model) != "m2d_s":  # which has a default list
        raise UserError("--csv_bg_noise has no effect without --noise_ratio, the share of noise in the mixed clips")
    if getattr(args, "swap_inputs", False) and not (getattr(args, "teacher", "") and ratio > 0):
        raise UserError("--swap_inputs exchanges the inputs of student and teacher: it needs --teacher and --noise_ratio")


def _check_offline(args: argparse.Namespace) -> None:
    family = family_of(args.model)
    teacher = getattr(args, "teacher", "")
    if family == "m2d_x" and not teacher:
        raise UserError(f"--model {args.model} learns from a teacher: give --teacher CHECKPOINT, or train m2d_vit_*")
    if teacher and family != "m2d_x":
        raise UserError(f"--teacher has no effect with --model {args.model}: models with a teacher are m2d_x_vit_*")
    if family in ("m2d", "m2d_d2v") and args.loss_m2d != 1:
        raise UserError(f"--loss_m2d {args.loss_m2d} has no effect with --model {args.model}, which has that one loss")
    if family in ("m2d", "m2d_d2v") and getattr(args, "loss_off", 0):
        raise UserError(f"--loss_off {args.loss_off} needs a teacher: --model m2d_x_vit_* with --teacher CHECKPOINT")


def _check_cuda_graphs(args: argparse.Namespace) -> None:
    if not args.cuda_graphs:
        return
    if args.compile is False:
        raise UserError("--cuda_graphs are made by the compiler: leave --no_compile out")
    if args.accum_iter > 1:
        raise UserError("--cuda_graphs overwrite gradients at each step: with --accum_iter 1 only")
    if world_size() > 1:
        raise UserError("--cuda_graphs are for one process; with several, leave them out")
    if not (args.device.startswith("cuda") and torch.cuda.is_available()):
        raise UserError("--cuda_graphs need a CUDA device, and this run has none")


def _check_sharding(args: argparse.Namespace) -> None:
    if not getattr(args, "fsdp", False):
        return
    if world_size() < 2:
        raise UserError("--fsdp deals a model to several processes: start them by torchrun --nproc_per_node=N")
    if args.compile:
        raise UserError("--compile and --fsdp do not go together here: leave one of them out")
    if args.device.startswith("cuda") and torch.cuda.is_available() and not args.bf16:
        raise UserError("--fsdp takes --bf16 on CUDA: float16's loss scaling is not done for dealt gradients")
