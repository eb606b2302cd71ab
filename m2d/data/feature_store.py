"""Speech clips that carry a teacher's features: log-mel crops and the features of the same time.

A feature (20 ms) covers two log-mel frames (10 ms each): frame 2k and 2k + 1 belong to feature k. Crops start at
multiples of the patch's frame count, so that patches, frames and features line up.
"""

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from .clip_list import ClipList
from .file_store import FileStore, check_shape
from .npy import ArrayHeader, Scratch, find_members, read_columns, read_integer
from .rng import choice
from .store import ClipStore, fill_short

FRAMES_PER_FEATURE = 2
_MEMBERS = ("arr_0.npy", "arr_1.npy", "arr_2.npy")


def aligned_start(u: np.ndarray | float, valid_features: np.ndarray | int, frames: int, patch_frames: int) -> np.ndarray:
    """Where crops start, in frames: even, a multiple of the patch's frame count, within the clip's usable length.

    The usable length is `max(valid_features, frames / 2)` features, rounded down to a multiple of `patch_frames`
    (but never to less than the crop).

    Args:
        u: place among all valid starts, in [0, 1).
        valid_features: the clip's features without padding (`arr_2`).
        frames: length of the crop, even and a multiple of `patch_frames`.
        patch_frames: frames that a patch spans, even.
    """
    crop_features = frames // FRAMES_PER_FEATURE
    beyond_crop = np.maximum(valid_features // patch_frames * patch_frames - crop_features, 0)
    return choice(u, beyond_crop * FRAMES_PER_FEATURE // patch_frames + 1) * patch_frames


class FeatureStore(ClipStore):
    """A store whose clips carry features.

    Attributes:
        patch_frames: frames that a patch spans: crops start at its multiples.
        feature_width: width E of a feature.
    """

    patch_frames: int
    feature_width: int

    @abstractmethod
    def read_with_features(self, indices: np.ndarray, u: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Crops and the features of the same time; arguments and errors as of `read_crops`.

        A clip shorter than the crop is completed by silence, its features by zeros: after standardisation (and in the
        cosine) a zero vector gives the prediction no direction to go to.

        Returns:
            crops `[B, n_mels, frames]`; features float32 `[B, frames // 2, E]`.
        """


class NpzStore(FileStore, FeatureStore):
    """One uncompressed .npz file per clip: `arr_0` log-mel `[1, n_mels, frames]`, `arr_1` features `[1, T50, E]`,
    `arr_2` the number of features without padding.

    Args:
        clip_list: the clips.
        data_path: folder that the file names are relative to.
        n_mels: mel bands expected.
        patch_frames: frames that a patch spans.
    """

    def __init__(self, clip_list: ClipList, data_path: str | Path, n_mels: int = 80, patch_frames: int = 4):
        super().__init__(clip_list, data_path, n_mels)
        self.patch_frames = patch_frames

    @cached_property
    def feature_width(self) -> int:
        """That of the first clip; every other must have it too."""
        with self.opened(0) as fd:
            return _Npz(fd, self.n_mels, None).features.shape[2]

    def read_crops(self, indices: np.ndarray, u: np.ndarray, frames: int, repeat: bool = False) -> np.ndarray:
        crops = np.empty((len(indices), self.n_mels, frames), dtype=np.float32)
        scratch = Scratch()
        for crop, i, place in zip(crops, indices.tolist(), u.tolist(), strict=True):
            with self.opened(i) as fd:
                clip = _Npz(fd, self.n_mels, self.feature_width)
                start = int(aligned_start(place, clip.valid, frames, self.patch_frames))
                clip.read_crop(start, crop, repeat, scratch)
        return crops

    def read_with_features(self, indices: np.ndarray, u: np.ndarray, frames: int) -> tuple[np.ndarray, np.ndarray]:
        crops = np.empty((len(indices), self.n_mels, frames), dtype=np.float32)
        features = np.empty((len(indices), frames // FRAMES_PER_FEATURE, self.feature_width), dtype=np.float32)
        scratch = Scratch()
        for b, (i, place) in enumerate(zip(indices.tolist(), u.tolist(), strict=True)):
            with self.opened(i) as fd:
                clip = _Npz(fd, self.n_mels, self.feature_width)
                start = int(aligned_start(place, clip.valid, frames, self.patch_frames))
                clip.read_crop(start, crops[b], False, scratch)
                clip.read_features(start // FRAMES_PER_FEATURE, features[b], scratch)
        return crops, features

    def read_whole(self, i: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Clip i: float32 `[n_mels, frames]`, its features float32 `[T50, E]` and how many of them are no padding."""
        with self.opened(i) as fd:
            clip, scratch = _Npz(fd, self.n_mels, self.feature_width), Scratch()
            crop = np.empty(clip.lms.shape[1:], dtype=np.float32)
            clip.read_crop(0, crop, False, scratch)
            features = np.empty(clip.features.shape[1:], dtype=np.float32)
            clip.read_features(0, features, scratch)
            return crop, features, clip.valid


class _Npz:
    """The three arrays of an open .npz, found but not read."""

    def __init__(self, fd: int, n_mels: int, feature_width: int | None):
        self.fd = fd
        members = find_members(fd)
        missing = [name.removesuffix(".npy") for name in _MEMBERS if name not in members]
        if missing:
            raise ValueError(
                f"no {', '.join(missing)} in it (it holds {', '.join(members)}); "
                "M2D-S takes what speech/extract_offline_ls960.py writes: arr_0 log-mel, arr_1 features, arr_2 their number"
            )
        lms, features, valid = (members[name] for name in _MEMBERS)
        self.lms_begin, self.features_begin = lms.begin, features.begin
        self.lms, self.features = lms.header(fd, "arr_0"), features.header(fd, "arr_1")
        check_shape(self.lms, n_mels, "arr_0: ")
        _check_features(self.features, feature_width)
        self.valid = min(read_integer(fd, valid, "arr_2"), self.features.shape[1])

    def read_crop(self, start: int, crop: np.ndarray, repeat: bool, scratch: Scratch) -> None:
        valid = max(0, min(self.lms.shape[2] - start, crop.shape[1]))
        if valid:
            read_columns(self.fd, self.lms, start, crop[:, :valid], scratch, self.lms_begin)
        fill_short(crop, valid, repeat)

    def read_features(self, start: int, out: np.ndarray, scratch: Scratch) -> None:
        width, dtype = self.features.shape[2], self.features.dtype
        count = max(0, min(self.features.shape[1] - start, len(out)))
        at = self.features_begin + self.features.offset + start * width * dtype.itemsize
        straight = dtype == out.dtype
        piece = out[:count] if straight else scratch.take(count * width * dtype.itemsize)
        if os.preadv(self.fd, [piece], at) != piece.nbytes:
            raise ValueError("the file ended while it was read")
        if not straight:
            out[:count] = piece.view(dtype).reshape(count, width)
        out[count:] = 0


def _check_features(header: ArrayHeader, width: int | None) -> None:
    shape = header.shape
    if header.dtype.kind != "f" or header.fortran or len(shape) != 3 or shape[0] != 1 or 0 in shape:
        raise ValueError(f"arr_1: {header.dtype} of shape {shape}, expected float32 (1, features, width) in C order")
    if width is not None and shape[2] != width:
        raise ValueError(f"arr_1: features of width {shape[2]}, the list's first clip has {width}")


def check_sizes(input_frames: int, patch_frames: int) -> None:
    """Raise UserError where crops of `input_frames` and patches of `patch_frames` cannot be aligned with features."""
    if patch_frames % FRAMES_PER_FEATURE:
        raise UserError(
            f"--patch_size: patches of {patch_frames} frames; speech patches span an even number (a feature is 2 frames)"
        )
    if input_frames % patch_frames:
        raise UserError(
            f"--input_size {input_frames} frames is no multiple of the patch's {patch_frames} (--patch_size): "
            f"{input_frames // patch_frames * patch_frames} or {-(-input_frames // patch_frames) * patch_frames} would be"
        )
