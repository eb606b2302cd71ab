"""A picture of a file's sound and of its tags over time."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..audio.decode import open_audio
from ..audio.framing import segments
from ..audio.logmel import FrontEnd, band_edges
from ..utils.atomic_file import write_figure
from ..utils.names import shown
from .runtime import RuntimeM2D
from .stream import log_mel_of

#: In the pictures' metadata.
PROGRAM = "m2d tag"
#: Formats by the suffixes of pictures.
PICTURE_SUFFIXES = (".png", ".pdf", ".svg")
_MOST_COLUMNS = 2000
_DB_PER_NEPER = 10 / np.log(10)
_TICKS_KHZ = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)


def read_log_mel(path: Path, runtime: RuntimeM2D, frames: int) -> np.ndarray:
    """The log-mel of a file of `frames` frames in dB, averaged over time to at most 2,000 columns: `[n_mels, columns]`."""
    width = -(-frames // _MOST_COLUMNS)
    columns, rest = [], np.empty((runtime.front_end.n_mels, 0))
    for part in _parts(path, runtime):
        rest = np.concatenate([rest, part], axis=1)
        whole = rest.shape[1] // width * width
        columns.append(rest[:, :whole].reshape(len(rest), -1, width).mean(axis=2))
        rest = rest[:, whole:]
    if rest.shape[1]:
        columns.append(rest.mean(axis=1, keepdims=True))
    return np.concatenate(columns, axis=1) * _DB_PER_NEPER


def _parts(path: Path, runtime: RuntimeM2D) -> Iterator[np.ndarray]:
    """The log-mel, stretch by stretch."""
    with open_audio(path, runtime.sample_rate) as blocks:
        for segment in segments(blocks, runtime.front_end):
            yield log_mel_of([segment], runtime)[0][:, : segment.frames].cpu().numpy()


def draw_tags(
    out: Path,
    title: str,
    log_mel: np.ndarray,
    front_end: FrontEnd,
    values: np.ndarray,
    edges: Sequence[float],
    names: Sequence[str],
    top: int,
) -> None:
    """Draw the log-mel and, below it, the most probable classes over time.

    Args:
        out: the picture, in a format of PICTURE_SUFFIXES.
        log_mel: in dB, `[n_mels, columns]`, of the whole clip.
        values: probabilities `[windows, classes]`.
        edges: the windows' limits in seconds, `[windows + 1]`.
        names: of the classes.
        top: classes to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError(f"{shown(out)}: pictures need {error.name}: pip install 'm2d-audio[train]'") from None
    best = np.argsort(-values.max(axis=0), kind="stable")[:top]
    best = best[np.argsort(values[:, best].argmax(axis=0), kind="stable")]
    figure = Figure(figsize=(12, 3.2 + 0.3 * len(best)), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.5, 0.3 * len(best) + 0.4])
    extent = (edges[0], edges[-1], -0.5, len(log_mel) - 0.5)
    image = upper.imshow(log_mel, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    centres = band_edges(front_end)[1:-1] / 1000
    ticks = [tick for tick in _TICKS_KHZ if centres[0] <= tick <= centres[-1]]
    upper.set_yticks(np.interp(ticks, centres, np.arange(len(centres))), [f"{tick:g}" for tick in ticks])
    upper.set_ylabel("frequency (kHz)")
    upper.set_title(shown(title), parse_math=False)
    figure.colorbar(image, ax=upper, label="log-mel (dB)")
    mesh = lower.pcolormesh(edges, np.arange(len(best) + 1), values[:, best].T, cmap="magma", vmin=0, vmax=1)
    lower.set_yticks(np.arange(len(best)) + 0.5, [shown(str(names[c])) for c in best], parse_math=False)
    lower.invert_yaxis()
    lower.set_xlabel("time (s)")
    figure.colorbar(mesh, ax=lower, label="probability")
    write_figure(out, figure, PROGRAM, dpi=120)
