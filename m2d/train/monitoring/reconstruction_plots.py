"""Plots of a masked autoencoder on sample clips: input, visible patches, reconstruction."""

import logging
from pathlib import Path

import numpy as np
import torch

from ...audio.logmel import SILENCE
from ...utils.atomic_file import write_figure
from ..checks import N_MELS
from ..trainer import Trainer

logger = logging.getLogger("m2d")


def draw_samples(trainer: Trainer, checkpoint: Path) -> None:
    """Draw the clips under `data_path/vis_samples/*.npy`, where there are any, beside a checkpoint.

    The pictures are `vis-{epoch}/{clip}.png`; a clip that cannot be drawn is skipped with a warning.
    """
    files = sorted((Path(trainer.settings.data.data_path) / "vis_samples").glob("*.npy"))
    folder = checkpoint.with_name(checkpoint.stem.replace("checkpoint", "vis"))
    for file in files:
        try:
            clip = _load(file, trainer.model.patch_embed.img_size[1], trainer.transform.stats)
            folder.mkdir(exist_ok=True)
            draw(trainer, clip, file.stem, folder / f"{file.stem}.png")
        except (OSError, ValueError) as error:
            logger.warning("%s is not drawn: %s", file, error)


def _load(file: Path, frames: int, stats: tuple[float, float]) -> torch.Tensor:
    """The first frames of a clip, normalised and padded with silence: `[1, 1, mels, frames]`."""
    clip = np.load(file, allow_pickle=False)
    if clip.ndim != 3 or clip.shape[:2] != (1, N_MELS):
        raise ValueError(f"its shape is {list(clip.shape)}, expected [1, {N_MELS}, frames]")
    clip = np.pad(clip[..., :frames], ((0, 0), (0, 0), (0, max(frames - clip.shape[2], 0))), constant_values=SILENCE)
    return (torch.from_numpy(clip.astype(np.float32))[None] - stats[0]) / stats[1]


@torch.no_grad()
def draw(trainer: Trainer, clip: torch.Tensor, title: str, path: Path) -> None:
    """One picture of a clip `[1, 1, mels, frames]`: input, visible patches, reconstruction."""
    trainer.model.eval()
    clip = clip.to(trainer.launch.device)
    plan = trainer.transform.mask(0, torch.zeros(1, dtype=torch.int64, device=clip.device))
    with trainer.autocast():
        loss, recons, _, mask = trainer.model.forward_viz(clip, plan)
    height, width = trainer.model.patch_size()
    masked = mask[0].repeat_interleave(height, 0).repeat_interleave(width, 1).bool().cpu()
    spectrogram = clip[0, 0].cpu()[: masked.shape[0], : masked.shape[1]]
    panels = {
        "input": spectrogram,
        f"visible patches ({1 - masked.float().mean():.0%})": spectrogram.masked_fill(masked, float("nan")),
        f"reconstruction (loss {loss:.3f})": recons[0, 0].float().cpu(),
    }
    _draw_panels(panels, title, path)


def _draw_panels(panels: dict[str, torch.Tensor], title: str, path: Path) -> None:
    from matplotlib.figure import Figure  # takes a sixth of a run's start, and few runs draw

    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title)
    low, high = np.nanmin(list(panels.values())[0]), np.nanmax(list(panels.values())[0])
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(values, origin="lower", aspect="auto", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(name, fontsize=10)
        axis.set_ylabel("mel band")
    axes[-1].set_xlabel("frame (10 ms)")
    figure.colorbar(image, ax=axes, label="normalised log-mel")
    write_figure(path, figure, "m2d train")
