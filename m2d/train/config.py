"""Settings of a pre-training run: each field is a flag, with its default, help and bounds beside it.

`make_parser` makes a program's flags from the fields, `Settings.from_args` the frozen settings from the parsed flags, and
`Settings.as_dict` what checkpoints and run.json keep. Nothing else in the library takes an argparse.Namespace.
"""

import argparse
import ast
import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from ..audio.logmel_torch import PRESETS
from ..models.m2d import LOSS_TYPES
from ..models.text_encoder import POOLINGS
from ..utils.program import ArgumentParser

INFINITY = math.inf
TRACKERS = ("tensorboard", "wandb", "trackio")


# ---------------------------------------------------------------- values of flags


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


def layer_list(text: str) -> tuple[int, ...]:
    """Block numbers such as "[0,2]"; an empty text for none."""
    value = _literal(text, "a list of block numbers such as [0,2]") if text else []
    if not all(type(v) is int for v in value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of block numbers such as [0,2]")
    return tuple(value)


def tracker_list(text: str) -> tuple[str, ...]:
    """Names of trackers such as tensorboard,wandb; an empty text for none."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no tracker: choose from {', '.join(TRACKERS)}")
    return tuple(dict.fromkeys(names))


# ---------------------------------------------------------------- settings


def flag(
    default: object,
    help: str,
    alias: str = "",
    parse: Callable[[str], object] | None = None,
    choices: tuple[str, ...] = (),
    low: float = -INFINITY,
    high: float = INFINITY,
) -> Any:
    """A field that is the flag `--name VALUE`, and `--alias VALUE` too.

    Args:
        default, help: the default, and the help text.
        alias: a second name.
        parse: makes the value from text, where the field's type cannot.
        choices: the values that may be given.
        low, high: the bounds of a number (`checks.check` refuses others, and NaN and infinity with them).
    """
    options = {"help": help, "alias": alias, "parse": parse, "choices": choices, "low": low, "high": high}
    return field(default=default, metadata=options)


def switch(default: bool | None, on: str = "", off: str = "") -> Any:
    """A field that is turned on by `--name` (its help: `on`), off by `--no_name` (its help: `off`), or both."""
    return field(default=default, metadata={"on": on, "off": off})


@dataclass(frozen=True)
class RunSettings:
    """length of the run"""

    batch_size: int = flag(512, "clips per process and step", low=1)
    epochs: int = flag(300, "epochs of the full run", low=1)
    accum_iter: int = flag(1, "steps whose gradients make one update", low=1)
    stop_at: int = flag(-1, "end after this epoch with the schedule of the full run; -1: at the end")
    start_epoch: int = flag(0, "count epochs from here (a run without --resume)", low=0)
    resume: str = flag("", "load weights from a checkpoint: a path, an https address, or hf:owner/name", alias="weights")
    resume_partial: bool = switch(
        False, "with --resume: start at random the parts of the encoder that the checkpoint does not have"
    )
    force_start_epoch: int = flag(
        0, "with --resume: count epochs from here; -1: continue from the checkpoint, optimizer and scaler included"
    )
    seed: int = flag(0, "a run is a function of data, flags and seed")


@dataclass(frozen=True)
class ModelSettings:
    """model"""

    model: str = flag("m2d_vit_base", "a name of m2d.models_mae")
    decoder_depth: int = flag(8, "blocks of the predictor", low=1)
    input_size: str = flag("80x608", "mel bands x frames", parse=size_pair)
    patch_size: str = flag("16x16", "mel bands x frames", parse=size_pair)
    sr: str = flag("16k", "sampling rate of the data", choices=tuple(sorted(PRESETS)))
    mask_ratio: float = flag(0.7, "share of masked patches")
    cont_mask: int = flag(0, "mask whole time columns in runs of this many columns of patches; 0: at random", low=0)
    ema_decay_init: float = flag(0.99995, "EMA decay of the target encoder at the first update", low=0, high=1)
    ema_decay: float = flag(0.99999, "EMA decay of the target encoder at the last update", low=0, high=1)
    target_layers: tuple[int, ...] = flag((), "blocks whose mean is the target, such as [0,2]; none: the last", parse=layer_list)
    teacher: str = flag("", "M2D-X: the checkpoint whose features are the offline target")

    @property
    def family(self) -> str:
        """m2d_x of m2d_x_vit_base."""
        return self.model.split("_vit_")[0]

    @property
    def input_shape(self) -> tuple[int, int]:
        """(mel bands, frames) of the input."""
        return as_pair(self.input_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(mel bands, frames) of a patch."""
        return as_pair(self.patch_size)

    @property
    def frames(self) -> int:
        """Frames of a crop."""
        return self.input_shape[1]


@dataclass(frozen=True)
class CaptionSettings:
    """captions"""

    file_caption: str = flag("", "captions by clip id, files separated by commas: .safetensors or .npz of `m2d captions`")
    missing_captions: str = flag("error", "clips without a caption: an error, or left out", choices=("error", "skip"))
    text_encoder: str = flag("A", "what made the captions' embeddings: a letter of `m2d captions`, or another name")
    sem_mode: int = flag(0, "blocks of the semantic projector; 0: the MLP of 2024", low=0, high=4)
    published_gradient: bool = switch(
        False, "scale the caption loss's gradient in the encoder by 1/processes, as the published program did"
    )
    base_model: str = flag("", "the checkpoint whose audio encoder is taken")
    finetune: str = flag("", "the checkpoint of an earlier stage: audio encoder, projectors and text encoder are taken")
    train_audio: bool = switch(False, "train the audio encoder too")
    tokenizer: str = flag("", "name or folder of the tokenizer, where it is not the text encoder's")
    text_pooling: str = flag("", "how a text's vector is made; none: the text encoder's own, else mean", choices=("", *POOLINGS))
    truncate: bool = switch(False, "cut captions that are longer than the text encoder takes")


@dataclass(frozen=True)
class LossSettings:
    """loss"""

    loss_fn: str = flag("norm_mse", "loss of the prediction", choices=LOSS_TYPES)
    loss_m2d: float = flag(1.0, "weight of the M2D loss")
    loss_off: float = flag(0.0, "weight of the offline loss")
    norm_pix_loss: bool = switch(True, "standardise each target vector", "targets as they are")


@dataclass(frozen=True)
class OptimSettings:
    """optimizer"""

    optim: str = flag("adamw", "the optimizer", choices=("adamw", "sgd"))
    weight_decay: float = flag(0.05, "of matrices, with AdamW", low=0)
    clip_grad: float = flag(3.0, "largest gradient norm; 0: no clipping", low=0)
    lr: float | None = flag(None, "peak learning rate; none: blr x effective batch / 256", parse=float, low=0)
    blr: float = flag(3e-4, "peak learning rate per 256 clips of an update", low=0)
    min_lr: float = flag(0.0, "learning rate at the end", low=0)
    warmup_epochs: int = flag(20, "epochs of linear warm-up", low=0)
    bf16: bool = switch(False, "bfloat16 on CUDA, in place of float16 with loss scaling")


@dataclass(frozen=True)
class DataSettings:
    """data"""

    data_path: str = flag("data", "the folder that the lists' file names start from")
    csv_main: str = flag(
        "data/files_audioset.csv",
        "the list or pack of clips; several: a.pack:2,b.pack (a's clips come twice as often)",
        alias="dataset",
    )
    csv_bg_noise: str = flag("", "the list of background noise clips")
    csv_val: str = flag("", "the list of validation clips (at most 2,048 are used)")
    noise_ratio: float = flag(0.0, "share of background noise in the mixed clips", low=0, high=1)
    weighted: bool = switch(False, "draw clips in proportion to the list's column weight")
    swap_inputs: bool = switch(False, "the clean clip to the student, the mixed one to the teacher")
    min_ds_size: int = flag(10000, "repeat a shorter list until it has this many entries; 0: never", low=0)
    norm_stats: tuple[float, float] | str | None = flag(
        None, '"[mean,std]" of the data; resume: those of --resume; none: measured', parse=norm_stats
    )
    random_crop: bool = switch(True, off="crop every clip at its beginning")
    skip_bad_files: bool = switch(False, "replace a clip that cannot be read by the next one, and count it")


@dataclass(frozen=True)
class OutputSettings:
    """output"""

    output_dir: str = flag("", "folder of the run; none: named after the settings", alias="out")
    tracker: tuple[str, ...] = flag(
        ("tensorboard",), f"where figures go beside log.txt: {', '.join(TRACKERS)}, joined by commas", parse=tracker_list
    )
    log_dir: str = flag("", "folder of the TensorBoard files; none: the run's")
    auto_resume: bool = switch(False, "resume the run in the output folder, if there is one, at its exact step")
    save_minutes: float = flag(10.0, "minutes between writes of last.pth", low=0)
    keep_last: int = flag(0, "how many of the newest checkpoint-N.pth to keep; 0: all", low=0)
    save_freq: int = flag(100, "epochs between checkpoints", low=1)
    eval_after: int = flag(50, "evaluate checkpoints from this epoch on (quick_eval.sh)")
    probe: str = flag("", "labelled clips (a list with file_name and label, or class folders) that a probe judges the encoder by")
    probe_freq: int = flag(10, "epochs between probes; rank 0 probes, the others wait", low=1)
    keep_best: bool = switch(False, "keep the epoch with the best linear probe as checkpoint-best.pth")
    feature_eval_freq: int = flag(10, "epochs between label-free quality figures; 0: never", alias="eval_freq", low=0)


@dataclass(frozen=True)
class MachineSettings:
    """machine"""

    device: str = flag("cuda", "auto, cuda (the CPU where there is none), mps or cpu")
    num_workers: int = flag(8, "threads that read ahead, per training process", alias="workers", low=0)
    pin_mem: bool = switch(True, "pin the loader's memory (CUDA)", "do not pin it")
    compile: bool | None = switch(None, "compile the model as a whole", "compile nothing; neither: on CUDA as --compile_blocks")
    compile_blocks: bool = switch(False, "compile the transformer's blocks, equal ones once, and the code between them")
    cuda_graphs: bool = switch(False, "launch a step's kernels at once, as CUDA graphs: for small models on one GPU")
    fsdp: bool = switch(False, "shard weights and optimizer state across ranks (FSDP2), for large models")
    rank_timeout: float = flag(
        10.0, "minutes after which a run of several processes ends if one of them does not answer", low=0.01
    )
    activation_checkpointing: bool = switch(False, "recompute activations in the backward pass, to save memory")
    recompute_gelu: bool | None = switch(
        None,
        "recompute the GELUs in the backward pass: a fifth less memory; neither: in compiled code on CUDA",
        "keep the GELUs' outputs",
    )
    fp8: bool = switch(False, "products of the blocks in float8, with --bf16 on GPUs from Ada and Hopper on")
    half_target: bool = switch(False, "keep the target encoder's tokens in half precision between its blocks (CUDA)")
    short_attention: bool | None = switch(
        None,
        "attention by our Triton kernels where they fit: CUDA, half precision, <= 256 tokens; none: where they run",
        "attention by PyTorch's kernels alone",
    )


@dataclass(frozen=True)
class Settings:
    """All settings of a run, by group.

    Attributes:
        flags: the settings that the program has flags for; the others have their defaults, which mean "off".
    """

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    captions: CaptionSettings = CaptionSettings()
    loss: LossSettings = LossSettings()
    optim: OptimSettings = OptimSettings()
    data: DataSettings = DataSettings()
    output: OutputSettings = OutputSettings()
    machine: MachineSettings = MachineSettings()
    flags: frozenset[str] = frozenset()

    @property
    def trains_text_encoder(self) -> bool:
        """Whether the program trains a text encoder with an audio encoder, and no predictor."""
        return "base_model" in self.flags

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "Settings":
        """The settings of parsed flags; attributes that are no settings are left alone."""
        values, groups = vars(args), {}
        for name, group in GROUPS.items():
            groups[name] = group(**{each.name: values[each.name] for each in fields(group) if each.name in values})
        known = {each.name for group in GROUPS.values() for each in fields(group)}
        return cls(**groups, flags=frozenset(known & values.keys()))

    def as_dict(self) -> dict[str, object]:
        """The settings that the program has flags for, by flag, as plain values: `args` of checkpoints and run.json."""
        values = {each.name: getattr(group, each.name) for group, each in self.each_field()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if k in self.flags}

    def each_field(self) -> list[tuple[object, Field]]:
        """All (group, field) pairs."""
        return [(getattr(self, name), each) for name, group in GROUPS.items() for each in fields(group)]


GROUPS: Mapping[str, Any] = {each.name: each.type for each in fields(Settings) if each.name != "flags"}


# ---------------------------------------------------------------- flags


def make_parser(prog: str, description: str, defaults: Mapping[str, object], without: tuple[str, ...]) -> argparse.ArgumentParser:
    """The parser of one program.

    Args:
        prog, description: for `--help`.
        defaults: the program's own defaults, by flag.
        without: flags that the program does not have.
    """
    shape = argparse.ArgumentDefaultsHelpFormatter
    parser = ArgumentParser(prog, description=description, formatter_class=shape)
    for group in GROUPS.values():
        section = parser.add_argument_group(group.__doc__)
        for each in fields(group):
            for names, options in _flags_of(each):
                if names[0] not in without:
                    section.add_argument(*(f"--{name}" for name in names), **options, dest=each.name, default=each.default)
    known = {action.dest for action in parser._actions}
    parser.set_defaults(**{name: value for name, value in defaults.items() if name in known})
    return parser


def _flags_of(setting: Field) -> list[tuple[list[str], dict]]:
    """The flags of a field: their names, and argparse's options."""
    name, options = setting.name, setting.metadata
    if "on" in options:
        on = ([name], {"action": "store_true", "help": options["on"]})
        off = ([f"no_{name}"], {"action": "store_false", "help": options["off"]})
        return [each for each in (on, off) if each[1]["help"]]
    names = [name, options["alias"]] if options["alias"] else [name]
    return [(names, {"type": options["parse"] or setting.type, "choices": options["choices"] or None, "help": options["help"]})]
