"""What an encoder has learned, of a sample of clips: their features, and a linear probe where folders or labels name classes."""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..evaluation.features import EncoderFeatures, FeatureSource, LogMelFeatures, untrained
from ..evaluation.label_free import rank_me
from ..evaluation.labelled_clips import LabelledClips
from ..evaluation.probe import Judgement, Protocol
from ..inference.runtime import RuntimeM2D
from ..utils.parallel import Progress

PROBE_CLIPS = 1000
CLIPS_PER_CLASS = 12
FOLDS = 4
ENCODING_FLOPS = 2e12  # about half a minute of two cores; fitting takes less
ACCURACY = "linear/accuracy"
TRAINED, UNTRAINED, LOGMEL = "trained encoder", "same encoder, untrained", "mean and deviation of the log-mel"
NEXT_STEP = (
    "So far training has gained nothing certain for these classes. What to do next: judge released weights on the same sounds "
    "(m2d probe AUDIO_FOLDER --weights CKPT; docs/weights.md), or train for longer on more audio (docs/learning.md)."
)
_POOLING = "mean"  # what m2d embed gives for a clip
_CLIPS_AT_ONCE = 16
_MOST_NAMES = 200_000  # that are looked through for classes

logger = logging.getLogger("m2d")


def affordable_clips(runtime: RuntimeM2D, frames: int) -> int:
    """How many clips two encoders of this size can encode in ENCODING_FLOPS: the same ones whenever it is asked."""
    backbone = runtime.backbone
    (rows, columns), input_frames = backbone.grid_size(), backbone.patch_embed.img_size[1]
    tokens = rows * columns * max(1.0, frames / input_frames)
    flops = 2 * tokens * sum(parameter.numel() for parameter in backbone.blocks.parameters())
    return int(ENCODING_FLOPS / (2 * flops))


def labelled_clips(data_path: Path, names: Sequence[str], most: int, labels: Sequence[str] | None = None) -> LabelledClips | None:
    """Clips to probe with and their classes; none where there are fewer than two classes.

    Classes of fewer than CLIPS_PER_CLASS clips are left out. Of many clips `most` evenly spread ones are taken, at most
    PROBE_CLIPS, of no more of the largest classes than leave each CLIPS_PER_CLASS.

    Args:
        data_path: the folder that the names start from.
        names: of all clips.
        most: how many clips can be afforded.
        labels: the classes of the clips; none: the folders that they lie in.
    """
    most = max(2 * CLIPS_PER_CLASS, min(PROBE_CLIPS, most))
    given = [Path(name).parent.as_posix() for name in names] if labels is None else labels
    class_of = dict(zip(names, given, strict=True))
    sizes = Counter(class_of.values())
    large = [label for label, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])) if size >= CLIPS_PER_CLASS]
    large = set(large[: most // CLIPS_PER_CLASS])
    chosen = sorted(name for name, label in class_of.items() if label in large)
    chosen = chosen[:: max(1, -(-len(chosen) // most))]
    kept = {label for label, size in Counter(class_of[name] for name in chosen).items() if size >= FOLDS}
    chosen = [name for name in chosen if class_of[name] in kept]
    if len(kept) < 2:
        return None
    logger.info("linear probe with %d of %d clips, of %d classes", len(chosen), len(names), len(kept))
    classes, targets = np.unique([class_of[name] for name in chosen], return_inverse=True)
    paths = [data_path / name for name in chosen]
    return LabelledClips(paths, classes.tolist(), targets.astype(np.int64), np.arange(len(chosen)))


def readable(clips: LabelledClips, read: np.ndarray) -> LabelledClips | None:
    """The clips that could be read, bool `[N]`; none where too few of a class are left for the folds."""
    left = clips[np.flatnonzero(read)]
    return left if np.bincount(left.targets, minlength=len(clips.classes)).min() >= FOLDS else None


def features_of(source: FeatureSource, crops: np.ndarray) -> np.ndarray:
    """Features of log-mel crops of one length, `[n, n_mels, frames]`: float32 `[n, width]`."""
    found = []
    with Progress(len(crops), "clip") as progress:
        for begin in range(0, len(crops), _CLIPS_AT_ONCE):
            batch = torch.from_numpy(crops[begin : begin + _CLIPS_AT_ONCE])[:, None]
            found.append(source.of(batch).numpy())
            progress.update(len(batch))
    return np.concatenate(found)


def compared_features(trained: RuntimeM2D, crops: np.ndarray) -> dict[str, np.ndarray]:
    """Features of crops by the trained encoder, by an untrained one, and the log-mel's statistics."""
    sources: dict[str, FeatureSource] = {
        TRAINED: EncoderFeatures(trained, _POOLING, "trained"),
        UNTRAINED: EncoderFeatures(untrained(trained).eval(), _POOLING, "untrained"),
        LOGMEL: LogMelFeatures(trained.cfg.sr),
    }
    return {what: features_of(source, crops) for what, source in sources.items()}


def judge(clips: LabelledClips, features: dict[str, np.ndarray]) -> dict[str, Judgement]:
    """Judgements of linear probes, by what they see: rows of features are the clips'."""
    protocol = Protocol(clips, FOLDS)
    return {what: protocol.judge(values, what) for what, values in features.items()}


def directions(features: dict[str, np.ndarray]) -> dict[str, float]:
    """RankMe of each encoder's features: how many directions they use."""
    return {what: rank_me(features[what]) for what in (TRAINED, UNTRAINED)}


def verdict(judgements: dict[str, Judgement]) -> list[str]:
    """What the probes say, a line each, and what follows from it (nothing without probes)."""
    if not judgements:
        return []
    lines = [f"linear probe on held-out clips: {j.figures[ACCURACY][0]:6.1%}  {what}" for what, j in judgements.items()]
    gains = {what: judgements[TRAINED].difference(judgements[what], ACCURACY) for what in (UNTRAINED, LOGMEL)}
    lines += [
        f"  more than the {what}: {100 * d:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        for what, (d, low, high) in gains.items()
    ]
    if min(low for _, low, _ in gains.values()) > 0:
        return [*lines, "Training taught it something that tells these classes apart."]
    return [*lines, NEXT_STEP]


def sample(names: Sequence[str], labels: Sequence[str] | None, most: int) -> tuple[np.ndarray, LabelledClips | None]:
    """Rows to look at, and what they are where there are classes to probe for: of rows and clips the order is the same."""
    rows = np.unique(np.linspace(0, len(names) - 1, min(len(names), _MOST_NAMES)).astype(np.int64))
    some = [names[row] for row in rows.tolist()]
    clips = labelled_clips(Path(), some, most, None if labels is None else [labels[row] for row in rows.tolist()])
    if clips is None:
        return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64))], None
    row_of = {Path(name).as_posix(): row for name, row in zip(some, rows.tolist(), strict=True)}
    return np.array([row_of[path.as_posix()] for path in clips.paths]), clips
