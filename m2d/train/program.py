"""What sets one training program apart from the others; an entry script names its Recipe and hands it to pretrain.main."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..data.dataset import AudioDataset
from ..data.open import ClipStore, open_store
from .config import as_pair
from .trainer import Trainer

#: Opens a list of clips: (settings, the list's path, background noise, for validation the training data) to a data set.
OpenData = Callable[[Namespace, str, "ClipStore | None", "AudioDataset | None"], AudioDataset]


@dataclass(frozen=True)
class Recipe:
    """One training program.

    prog, description: for `--help`.
    families: model families that it trains; the first is the default's.
    open_data: opens a list of clips.
    defaults: its own defaults, by flag.
    without: flags that it does not have.
    name_defaults: values at which a setting is left out of the output folder's name, where they are not the usual ones.
    name_has_rate, name_has_epochs: whether the name says the sampling rate and ends with the number of epochs.
    check: refuses what cannot work, beyond what options.check does.
    at_checkpoint: called on rank 0 after each numbered checkpoint with the model in training and the checkpoint's path.
    """

    prog: str
    description: str
    families: tuple[str, ...]
    open_data: OpenData
    defaults: Mapping[str, object] = field(default_factory=dict)
    without: tuple[str, ...] = ("norm_pix_loss", "weighted")
    name_defaults: Mapping[str, object] = field(default_factory=dict)
    name_has_rate: bool = True
    name_has_epochs: bool = True
    check: Callable[[Namespace], None] = lambda args: None
    at_checkpoint: Callable[[Trainer, Path], None] = lambda trainer, checkpoint: None


def open_audio(args: Namespace, path: str, noise: ClipStore | None, train: AudioDataset | None) -> AudioDataset:
    """Unlabelled clips from a list of `.npy` files, sorted; for training repeated up to --min_ds_size."""
    return AudioDataset(
        open_store(path, args.data_path, check=False),
        input_frames=as_pair(args.input_size)[1],
        seed=args.seed,
        noise=noise,
        random_crop=args.random_crop,
        min_ds_size=args.min_ds_size if train is None else 0,
    )
