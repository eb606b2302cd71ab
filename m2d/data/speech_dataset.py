"""Samples of an M2D-S run: speech clips and a teacher's stored features (M2D-S: Niizumi et al., Interspeech 2023)."""

import numpy as np

from .dataset import AudioDataset
from .feature_store import FRAMES_PER_FEATURE, FeatureStore, check_sizes
from .store import ClipStore


class SpeechDataset(AudioDataset):
    """Crops of speech clips, each with `target`: the teacher's features of each patch's time, float32 `[B, T, E]`.

    A patch that spans more than one feature gets their mean. The list is not repeated.

    Args:
        clips: the clips, aligned to patches of `clips.patch_frames` frames (`open_features`).
        input_frames: length of a crop, a multiple of the patch's.
        seed, noise, random_crop: as for AudioDataset.

    Attributes:
        target_width: E.

    Raises:
        UserError: `input_frames` and the patch do not go together.
    """

    def __init__(
        self, clips: FeatureStore, input_frames: int, seed: int, noise: ClipStore | None = None, random_crop: bool = True
    ):
        check_sizes(input_frames, clips.patch_frames)
        super().__init__(clips, input_frames, seed, noise, random_crop)
        self.target_width = clips.feature_width

    def read(self, clips: np.ndarray, u: np.ndarray) -> dict[str, np.ndarray]:
        crops, features = self.clips.read_with_features(clips, u, self.input_frames)
        return {"clean": crops, "target": mean_of_spans(features, self.clips.patch_frames // FRAMES_PER_FEATURE)}


def mean_of_spans(features: np.ndarray, span: int) -> np.ndarray:
    """Means of each `span` consecutive features: `[B, count, E]` to float32 `[B, count / span, E]`."""
    batch, count, width = features.shape
    spans = features.reshape(batch, count // span, span, width)
    total = spans[:, :, 0].astype(np.float32)
    for k in range(1, span):  # in place: numpy's mean over this axis takes longer, with float16 twice as long
        total += spans[:, :, k]
    return total / np.float32(span) if span > 1 else total
