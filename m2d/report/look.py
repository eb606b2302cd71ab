"""A run opened for a report: its clips and its newest encoder, as far as they are there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..audio.logmel import SILENCE
from ..data.clip_list import read_list
from ..data.dataset import AudioDataset
from ..inference.clips import list_clips
from ..inference.runtime import RuntimeM2D
from ..models.mae import MaskedAutoencoderViT
from ..train.config import Settings
from ..utils.errors import first_line
from .clips import AudioClips, Clips, Seen, StoredClips, finetuning_clips, names_of, open_dataset, samples_seen
from .runs import Run

_MAE_FAMILIES = ("mae", "msm_mae")


@dataclass(frozen=True)
class Source:
    """What the user names instead of what the run's folder says.

    Attributes:
        csv, data_path: a list or pack, and the folder that a list's names start from.
        audio: folder with the clips' sound.
    """

    csv: Path | None = None
    data_path: Path | None = None
    audio: Path | None = None


@dataclass
class Look:
    """What can be looked at of a run.

    Attributes:
        run: the run.
        clips: the clips that it learns from.
        dataset, settings: of pre-training: its data and settings.
        runtime: the encoder of its newest checkpoint, in evaluation.
        notes: what cannot be shown, and why.
    """

    run: Run
    clips: Clips | None = None
    dataset: AudioDataset | None = None
    settings: Settings | None = None
    runtime: RuntimeM2D | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def frames(self) -> int:
        """Frames of the encoder's input; 608 where they are not known."""
        if self.runtime is not None:
            return self.runtime.backbone.patch_embed.img_size[1]
        return self.settings.model.frames if self.settings else 608

    def samples(self, count: int) -> list[Seen]:
        """What the encoder sees at the beginning of the newest epoch; nothing where that is not known."""
        if self.dataset is None or self.settings is None:
            return []
        epoch = max(0, int(self.run.epochs[-1]["epoch"]) - 1) if self.run.epochs else 0
        try:
            return samples_seen(self.dataset, self.settings, epoch, count, self.run.saved.get("stats"))
        except (OSError, ValueError) as error:
            self.notes.append(f"What the encoder sees cannot be shown: {error}")
            return []


def open_look(run: Run, source: Source, device: torch.device) -> Look:
    """Open what there is of a run; what is missing becomes a note.

    Raises:
        OSError, ValueError: what the user names in `source` cannot be used.
    """
    look = Look(run)
    try:
        _open_clips(look, source)
    except (OSError, ValueError) as error:
        if source.csv or source.data_path or source.audio:
            raise
        look.notes.append(f"The clips cannot be shown: {first_line(error)} (--csv and --data_path name them)")
    if run.checkpoint is None:
        first = "There is no checkpoint yet: it is written after the first epoch, or after --save_minutes."
        look.notes.append("There is no whole checkpoint in the folder." if run.epochs else first)
        return look
    try:
        look.runtime = RuntimeM2D(weight_file=run.checkpoint).to(device).eval()
    except (OSError, ValueError) as error:
        look.notes.append(f"The encoder cannot be used: {error}")
    return look


def _open_clips(look: Look, source: Source) -> None:
    run, rate = look.run, str(look.run.settings.get("sr", "16k"))
    if run.is_finetuning and not (source.csv or source.audio):
        look.clips = finetuning_clips(run)
        if look.clips is not None:
            return
    if "csv_main" in run.settings:
        look.dataset, look.settings = open_dataset(run, source.csv, source.data_path)
        look.clips = StoredClips(look.dataset.clips, source.audio)
    elif source.csv:
        names = list(read_list(source.csv).names)
        folder = source.data_path or source.csv.parent
        look.clips = AudioClips(str(source.csv), [folder / name for name in names], names, rate)
    elif source.audio:
        paths = list_clips([source.audio])
        look.clips = AudioClips(str(source.audio), paths, names_of(paths), rate)
    else:
        look.notes.append("The checkpoint does not name its clips: --audio FOLDER or --csv LIST names clips to look at.")


# ---------------------------------------------------------------- reconstructions


@dataclass(frozen=True)
class Reconstruction:
    """A clip whose hidden patches the decoder has filled in, `[n_mels, frames]`, and the error over them."""

    clip: np.ndarray
    loss: float


def has_decoder(run: Run) -> bool:
    """Whether a run's model reconstructs log-mels."""
    return str(run.settings.get("model", "")).split("_vit_")[0] in _MAE_FAMILIES and not run.is_finetuning


@torch.no_grad()
def reconstructions(look: Look, samples: Sequence[Seen]) -> list[Reconstruction]:
    """The samples as a masked autoencoder reconstructs them, from the patches that are not masked; visible ones stay.

    Of a run whose targets are standardised (`norm_pix_loss`), each patch gets back its own mean and deviation.
    """
    run, device = look.run, next(look.runtime.parameters()).device if look.runtime else None
    if look.runtime is None or not samples or not has_decoder(run):
        return []
    runtime = RuntimeM2D(weight_file=run.checkpoint, encoder_only=False).to(device).eval()
    model = runtime.backbone
    if not isinstance(model, MaskedAutoencoderViT) or model.patch_embed.img_size[1] != samples[0].clip.shape[1]:
        return []
    x = runtime.normalize_batch(torch.from_numpy(np.stack([sample.clip for sample in samples]))[:, None].to(device))
    hidden = torch.from_numpy(np.stack([sample.hidden for sample in samples])).flatten(1).to(device)
    order = torch.argsort(hidden.int(), dim=1, stable=True).argsort(dim=1)
    model.norm_pix_loss = bool(run.settings.get("norm_pix_loss", False))
    _, predicted, _ = model(x, (order, int((~hidden[0]).sum())))
    patches = model.patchify(x)
    errors = (predicted.float() - model.standardize(patches)).square().mean(dim=-1)
    losses = (errors * hidden).sum(dim=1) / hidden.sum(dim=1)
    if model.norm_pix_loss:
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        predicted = predicted * (variance + 1e-6).sqrt() + mean
    filled = model.unpatchify(torch.where(hidden[..., None], predicted.float(), patches))[:, 0]
    clips = (filled * runtime.cfg.std + runtime.cfg.mean).cpu().numpy()
    return [Reconstruction(clip, loss) for clip, loss in zip(clips, losses.tolist(), strict=True)]


def first_frames(clip: np.ndarray) -> int:
    """Frames before the silence that completes a short clip."""
    filled = np.flatnonzero((clip > SILENCE + 1e-3).any(axis=0))
    return int(filled[-1]) + 1 if len(filled) else 0
