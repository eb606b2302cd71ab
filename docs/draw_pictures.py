"""The pictures of the documentation, for light and dark pages.

    python docs/draw_pictures.py LIST.csv CLIP.npy

trains a small masked autoencoder (3 blocks of width 96, patches of 16 bands x 80 ms) on the spectrograms of LIST.csv that
`m2d convert --csv` wrote, and draws what it makes of CLIP.npy, which is left out of training. Writes docs/images/*.png.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from tqdm import tqdm, trange

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from m2d.audio.logmel import PRESETS, mel_filters
from m2d.data.clip_list import read_list
from m2d.models.mae import MaskedAutoencoderViT
from m2d.utils.program import ArgumentParser

IMAGES = Path(__file__).resolve().parent / "images"
INKS = {"light": "#263238", "dark": "#dfe3e8"}
COLOURS = {"online": "#00897b", "target": "#c0392b", "neutral": "#78909c"}
HZ = (250, 500, 1000, 2000, 4000)
SECONDS_PER_FRAME = 0.01
FRAMES = 208
MASK_RATIO = 0.7
SIZES = dict(img_size=(80, FRAMES), patch_size=(16, 16), embed_dim=96, depth=3, num_heads=3)
SIZES |= dict(decoder_embed_dim=96, decoder_depth=1, decoder_num_heads=3)
STEPS, BATCH, LEARNING_RATE = 1000, 32, 1e-3


def read_clips(list_file: Path, left_out: Path) -> list[np.ndarray]:
    """The clips `[1, n_mels, frames]` that are long enough."""
    paths = [list_file.parent / name for name in read_list(list_file).names]
    clips = [np.load(path) for path in paths if path.resolve() != left_out.resolve()]
    return [clip for clip in clips if clip.shape[2] >= FRAMES]


def draw_batch(clips: list[np.ndarray], rng: np.random.Generator) -> torch.Tensor:
    """Random crops of random clips: `[BATCH, 1, n_mels, FRAMES]`."""
    chosen = [clips[i] for i in rng.integers(len(clips), size=BATCH)]
    starts = [rng.integers(clip.shape[2] - FRAMES + 1) for clip in chosen]
    return torch.from_numpy(np.stack([clip[:, :, i : i + FRAMES] for clip, i in zip(chosen, starts, strict=True)]))


def train(clips: list[np.ndarray]) -> MaskedAutoencoderViT:
    """A masked autoencoder of random crops."""
    rng = np.random.default_rng(0)
    values = np.concatenate([clip.reshape(-1) for clip in clips])
    model = MaskedAutoencoderViT(**SIZES, norm_stats=(float(values.mean()), float(values.std())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.1)
    for step in trange(STEPS, unit="step"):
        batch = normalised(draw_batch(clips, rng), model)
        loss, _, _ = model(batch, MASK_RATIO)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            tqdm.write(f"step {step}: loss {loss.item():.3f}")
    return model.eval()


def normalised(clips: torch.Tensor, model: MaskedAutoencoderViT) -> torch.Tensor:
    mean, std = model.norm_stats
    return (clips - mean) / std


def draw_masked(model: MaskedAutoencoderViT, clip: np.ndarray) -> Figure:
    """A clip `[n_mels, frames]`, what the encoder sees of it, what the model makes of that."""
    torch.manual_seed(4)
    with torch.no_grad():
        _, filled, _, hidden = model.forward_viz(normalised(torch.from_numpy(clip)[None, None], model), MASK_RATIO)
    mean, std = model.norm_stats
    filled = (filled[0, 0] * std + mean).numpy()
    height, width = model.patch_size()
    hidden = hidden[0].numpy().repeat(height, axis=0).repeat(width, axis=1).astype(bool)
    panels = {
        "a clip": clip,
        f"what the encoder sees: {1 - hidden.mean():.0%}": np.ma.masked_where(hidden, clip),
        "what the model fills in": np.where(hidden, filled, clip),
    }
    figure = Figure(figsize=(12, 2.9), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        extent = (0, clip.shape[1] * SECONDS_PER_FRAME, 0, clip.shape[0])
        low, high = np.percentile(clip, (2, 99.5))
        axis.imshow(values, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=low, vmax=high)
        axis.set_facecolor("#8884")
        axis.set_title(title, fontsize=13)
        axis.set_xlabel("time (s)")
        axis.spines[:].set_visible(False)
    filters = mel_filters(PRESETS["16k"])
    centres = filters @ np.linspace(0, PRESETS["16k"].sample_rate / 2, filters.shape[1]) / filters.sum(axis=1)
    axes[0].set_yticks(np.interp(HZ, centres, np.arange(clip.shape[0]) + 0.5), [f"{hz / 1000:g}" for hz in HZ])
    axes[0].set_ylabel("frequency (kHz)")
    return figure


def draw_method(ink: str) -> Figure:
    """The two networks of M2D and what passes between them."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.set(xlim=(0, 12), ylim=(0, 3.4))
    axis.axis("off")
    upper, lower = 2.5, 0.9
    _box(axis, 0.9, 1.7, 1.5, "patches\nof a clip", COLOURS["neutral"])
    _box(axis, 4.1, upper, 1.9, "online encoder", COLOURS["online"])
    _box(axis, 7.1, upper, 1.7, "predictor", COLOURS["online"])
    _box(axis, 4.1, lower, 1.9, "target encoder", COLOURS["target"])
    _box(axis, 7.1, lower, 1.7, "standardise", COLOURS["target"])
    _box(axis, 11.0, 1.7, 1.7, "loss\n2 − 2 cos", COLOURS["neutral"])
    for start, end, words, above in (
        ((1.7, 1.95), (3.1, upper), "visible", 0.22),
        ((1.7, 1.45), (3.1, lower), "hidden", -0.3),
        ((5.1, upper), (6.2, upper), "", 0),
        ((5.1, lower), (6.2, lower), "", 0),
        ((8.0, upper), (10.1, 1.95), "predictions", 0.22),
        ((8.0, lower), (10.1, 1.45), "targets", -0.3),
    ):
        axis.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=ink, lw=1.4))
        axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + above, words, ha="center", va="center", fontsize=11)
    axis.annotate("", (4.1, lower + 0.4), (4.1, upper - 0.4), arrowprops=dict(arrowstyle="-|>", color=ink, lw=1.4, ls="--"))
    axis.text(4.25, 1.7, "moving average (EMA)", ha="left", va="center", fontsize=11)
    return figure


def _box(axis: Axes, x: float, y: float, width: float, words: str, colour: str) -> None:
    style = "round,pad=0.05,rounding_size=0.12"
    axis.add_patch(FancyBboxPatch((x - width / 2, y - 0.33), width, 0.66, boxstyle=style, facecolor=colour, edgecolor="none"))
    axis.text(x, y, words, color="white", ha="center", va="center", fontsize=12)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("list", type=Path, metavar="LIST.csv")
    parser.add_argument("clip", type=Path, metavar="CLIP.npy")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = train(read_clips(args.list, args.clip))
    clip = np.load(args.clip)[0, :, :FRAMES]
    for theme, ink in INKS.items():
        with rc_context({"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink}):
            for name, figure in {"masked": draw_masked(model, clip), "method": draw_method(ink)}.items():
                figure.savefig(IMAGES / f"{name}-{theme}.png", dpi=130, transparent=True)


if __name__ == "__main__":
    main()
