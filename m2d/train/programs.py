"""The training programs: what each adds to the others, behind `m2d train [m2d|mae|as|s|clap]` and the published scripts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from ..data.captions.dataset import CaptionDataset
from ..data.captions.store import Captions, open_captions
from ..data.dataset import AudioDataset
from ..data.feature_store import check_sizes
from ..data.label_dataset import LIST_COLUMNS, ASDataset
from ..data.open import open_features, open_store
from ..data.speech_dataset import SpeechDataset
from ..data.store import ClipStore
from ..models.text_encoder import PUBLISHED
from ..utils.errors import UserError
from .config import CaptionSettings, Settings
from .distributed.launch import world_size
from .monitoring.reconstruction_plots import draw_samples
from .trainer import Trainer

_PAIR_FLAGS = ("base_model", "finetune", "train_audio", "tokenizer", "text_pooling", "truncate")
_CAPTION_FLAGS = tuple(each.name for each in fields(CaptionSettings))
#: Opens a list of clips: (settings, the list's path, background noise, for validation the training data) to a data set.
OpenData = Callable[[Settings, str, "ClipStore | None", "AudioDataset | None"], AudioDataset]


@dataclass(frozen=True)
class Program:
    """One training program.

    Attributes:
        prog, description: for `--help`.
        families: model families that it trains; the first is the default's.
        open_data: opens a list of clips.
        defaults: its own defaults, by flag.
        without: flags that it does not have.
        name_defaults: values at which a setting is left out of the output folder's name, where they are not the usual ones.
        is_contrastive: whether a loss compares the clips of a step with each other.
        name_has_rate, name_has_epochs: whether the name holds the sampling rate and ends with the number of epochs.
        check: refuses what cannot work, beyond what checks.check does.
        at_checkpoint: called on rank 0 after each numbered checkpoint with the trainer and the checkpoint's path.
    """

    prog: str
    description: str
    families: tuple[str, ...]
    open_data: OpenData
    defaults: Mapping[str, object] = field(default_factory=dict)
    without: tuple[str, ...] = ("norm_pix_loss", "weighted", *_CAPTION_FLAGS)
    name_defaults: Mapping[str, object] = field(default_factory=dict)
    is_contrastive: bool = False
    name_has_rate: bool = True
    name_has_epochs: bool = True
    check: Callable[[Settings], None] = lambda settings: None
    at_checkpoint: Callable[[Trainer, Path], None] = lambda trainer, checkpoint: None


# ---------------------------------------------------------------- M2D, M2D-X, M2D-D2V; MAE


def open_audio(settings: Settings, path: str, noise: ClipStore | None, train: AudioDataset | None) -> AudioDataset:
    """Unlabelled clips from a list of `.npy` files, sorted; for training repeated up to --min_ds_size."""
    return AudioDataset(
        open_store(path, settings.data.data_path, check=False),
        input_frames=settings.model.frames,
        seed=settings.run.seed,
        noise=noise,
        random_crop=settings.data.random_crop,
        min_ds_size=settings.data.min_ds_size if train is None else 0,
    )


M2D = Program(
    prog="train_audio.py",
    description="Pre-train M2D, or M2D-X with --teacher, on unlabelled audio (log-mel spectrograms made by wav_to_lms.py).",
    families=("m2d", "m2d_d2v", "m2d_x"),
    open_data=open_audio,
)

MAE = Program(
    prog="mae_train_audio.py",
    description="Pre-train MAE or MSM-MAE on unlabelled audio (log-mel spectrograms made by wav_to_lms.py).",
    families=("msm_mae", "mae"),
    open_data=open_audio,
    defaults=dict(
        model="msm_mae_vit_base",
        epochs=200,
        save_freq=50,
        input_size="80x208",
        mask_ratio=0.75,
        norm_pix_loss=False,
        num_workers=10,
    ),
    without=(
        "no_norm_pix_loss",
        "weighted",
        "teacher",
        "swap_inputs",
        "csv_bg_noise",
        "noise_ratio",
        "loss_fn",
        "loss_m2d",
        "loss_off",
        "ema_decay_init",
        "ema_decay",
        "target_layers",
        "half_target",
        "fsdp",
        *_CAPTION_FLAGS,
    ),
    name_defaults=dict(effective_batch=512),
    name_has_rate=False,
    name_has_epochs=False,
    at_checkpoint=draw_samples,
)


# ---------------------------------------------------------------- M2D-AS


def open_labelled(settings: Settings, path: str, noise: ClipStore | None, train: AudioDataset | None) -> ASDataset:
    """Labelled clips in the list's order; validation takes the classes of the training data."""
    store = open_store(path, settings.data.data_path, sort=False, columns=LIST_COLUMNS, optional=("weight",), check=False)
    classes = train.classes if isinstance(train, ASDataset) else None
    return ASDataset(store, settings.model.frames, settings.run.seed, noise, settings.data.random_crop, classes)


M2D_AS = Program(
    prog="audioset/train_as.py",
    description="Pre-train M2D-AS on labelled audio, such as AudioSet (lists by util/make_as_weighted_list.py).",
    families=("m2d_as",),
    open_data=open_labelled,
    defaults=dict(model="m2d_as_vit_base", csv_main="data/files_as_weighted.csv", loss_off=0.1),
    without=("norm_pix_loss", "teacher", "swap_inputs", "min_ds_size", *_CAPTION_FLAGS),
    name_defaults=dict(csv_main="data/files_as_weighted.csv", loss_off=1.0),
)


# ---------------------------------------------------------------- M2D-S

_SPEECH_DEFAULTS = dict(
    model="m2d_s_vit_base",
    epochs=1000,
    warmup_epochs=60,
    eval_after=500,
    save_freq=500,
    input_size="80x208",
    patch_size="80x4",
    mask_ratio=0.6,
    noise_ratio=0.2,
    force_start_epoch=-1,
)


def open_speech(settings: Settings, path: str, noise: ClipStore | None, train: AudioDataset | None) -> SpeechDataset:
    """Speech clips with a teacher's features."""
    clips = open_features(path, settings.data.data_path, patch_frames=settings.model.patch_shape[1], check=False)
    return SpeechDataset(clips, settings.model.frames, settings.run.seed, noise, settings.data.random_crop)


def check_speech(settings: Settings) -> None:
    """Refuse crops that do not fit features at 50 Hz."""
    check_sizes(settings.model.frames, settings.model.patch_shape[1])


M2D_S = Program(
    prog="speech/train_speech.py",
    description="Pre-train M2D-S on speech with stored features (made by speech/extract_offline_ls960.py).",
    families=("m2d_s",),
    open_data=open_speech,
    defaults=dict(_SPEECH_DEFAULTS, csv_main="data/files_ls960_hybrid.csv", csv_bg_noise="data/files_audioset.csv"),
    without=("norm_pix_loss", "weighted", "teacher", "swap_inputs", "min_ds_size", *_CAPTION_FLAGS),
    name_defaults=dict(_SPEECH_DEFAULTS, csv_main="", csv_bg_noise=""),
    name_has_rate=False,
    name_has_epochs=False,
    check=check_speech,
)

# ---------------------------------------------------------------- M2D-CLAP


def open_captioned(settings: Settings, path: str, noise: ClipStore | None, train: AudioDataset | None) -> CaptionDataset:
    """Clips with embeddings of their captions."""
    files = open_captions(settings.captions.file_caption)
    _check_width(settings, files[0])
    clips = open_store(path, settings.data.data_path, check=False)
    missing = settings.captions.missing_captions
    return CaptionDataset(clips, files, settings.model.frames, settings.run.seed, noise, settings.data.random_crop, missing)


def _check_width(settings: Settings, captions: Captions) -> None:
    encoder = settings.captions.text_encoder
    if captions.width is None:
        raise UserError(f"--file_caption {captions.source} holds texts: m2d captions makes embeddings of them")
    if encoder in PUBLISHED and PUBLISHED[encoder].width != captions.width:
        raise UserError(
            f"--file_caption {captions.source} has embeddings {captions.width} wide, --text_encoder {encoder} "
            f"({PUBLISHED[encoder].name}) makes them {PUBLISHED[encoder].width} wide: name the one that made them"
        )


def check_captions(settings: Settings) -> None:
    """Refuse a run without captions, or with a batch of one clip, which has nothing to compare with."""
    if not settings.captions.file_caption:
        raise UserError("--file_caption names the captions' embeddings (m2d captions makes them): none are given")
    check_batch(settings)


def check_batch(settings: Settings) -> None:
    """Refuse steps of one clip."""
    if settings.run.batch_size * world_size() < 2:
        raise UserError("--batch_size 1: captions are compared within a batch: give 2 or more")


M2D_CLAP = Program(
    prog="clap/train_clap.py",
    description="Pre-train M2D-CLAP on clips with captions, whose embeddings `m2d captions` makes.",
    families=("m2d_clap",),
    open_data=open_captioned,
    defaults=dict(model="m2d_clap_vit_base", loss_off=0.01),
    is_contrastive=True,
    without=("norm_pix_loss", "weighted", "teacher", "swap_inputs", "min_ds_size", "fsdp", *_PAIR_FLAGS),
    name_defaults=dict(loss_off=0.01),
    check=check_captions,
)

#: What a pair of encoders has no use for.
_PREDICTOR_FLAGS = (
    "decoder_depth norm_pix_loss no_norm_pix_loss loss_fn loss_m2d loss_off ema_decay_init ema_decay target_layers cont_mask "
    "resume resume_partial force_start_epoch weighted teacher swap_inputs csv_bg_noise noise_ratio min_ds_size fsdp "
    "half_target compile_blocks fp8 cuda_graphs"
)


def open_texts(settings: Settings, path: str, noise: ClipStore | None, train: AudioDataset | None) -> CaptionDataset:
    """Clips with their captions as texts: those of --file_caption, else of the list itself."""
    source = settings.captions.file_caption or path
    files = open_captions(source)
    if files[0].width is not None:
        raise UserError(f"--file_caption {source} holds embeddings: a text encoder is trained on texts, a .csv with captions")
    clips = open_store(path, settings.data.data_path, check=False)
    missing = settings.captions.missing_captions
    return CaptionDataset(clips, files, settings.model.frames, settings.run.seed, None, settings.data.random_crop, missing)


CLAP_ONLY = Program(
    prog="clap/clap_only.py",
    description="Train a text encoder and a projector to agree with a pre-trained audio encoder (stages 2 and 2.1 of M2D-CLAP).",
    families=("m2d_clap",),
    open_data=open_texts,
    defaults=dict(
        model="m2d_clap_vit_base",
        input_size="80x1001",
        mask_ratio=0.3,
        epochs=30,
        warmup_epochs=5,
        blr=3e-6,
        save_freq=10,
        eval_after=30,
        sem_mode=1,
        text_encoder="B",
        compile=False,
    ),
    without=tuple(_PREDICTOR_FLAGS.split()),
    name_defaults=dict(mask_ratio=0.3, warmup_epochs=5, blr=3e-6, sem_mode=1),
    is_contrastive=True,
    check=check_batch,
)

#: By the word after `m2d train`.
PROGRAMS: Mapping[str, Program] = {"m2d": M2D, "mae": MAE, "as": M2D_AS, "s": M2D_S, "clap": M2D_CLAP, "clap-only": CLAP_ONLY}
