"""Samples of an M2D-CLAP run: clips, each with one of its captions."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ...utils.errors import UserError
from ..clip_list import TextColumn
from ..dataset import AudioDataset
from ..rng import Purpose, choice, uniform
from ..store import ClipStore
from .store import Captions, stems

MISSING = ("error", "skip")
ID_CHARACTERS = 11  # of a YouTube id

logger = logging.getLogger("m2d")


class ClipCaptions:
    """All captions of each clip of a list, from one or more files.

    A clip's captions are those of the id that is its file name without folder and suffix; else of the id that is the name's
    first 11 characters, as the names of clips from YouTube begin.

    Args:
        names: the clips' file names.
        files: where the captions come from, all of one kind and width.

    Attributes:
        counts: captions of each clip, int64 `[clips]`; 0 where there is none.
        width: width E of an embedding; None where captions are texts.
    """

    def __init__(self, names: TextColumn, files: Sequence[Captions]):
        self.files, self.width = files, files[0].width
        whole = stems(names)
        short = pc.utf8_slice_codeunits(whole, 0, ID_CHARACTERS)
        found = [_find(whole, short, captions) for captions in files]
        self._begins = np.stack([begins for begins, _ in found])
        self._ends = np.cumsum([counts for _, counts in found], axis=0)

    @property
    def counts(self) -> np.ndarray:
        return self._ends[-1]

    def keep(self, clips: np.ndarray) -> None:
        """Keep the clips at these places alone, int64 `[n]`."""
        self._begins, self._ends = self._begins[:, clips], self._ends[:, clips]

    def draw(self, clips: np.ndarray, u: np.ndarray) -> np.ndarray | list[str]:
        """One caption of each clip, all of a clip's equally likely: float32 `[B, E]`, or texts.

        Args:
            clips: clips that have captions, int64 `[B]`.
            u: which caption, float64 `[B]` in [0, 1).
        """
        return self._take(clips, choice(u, self.counts[clips]))

    def all_of(self, clips: np.ndarray) -> tuple[np.ndarray | list[str], np.ndarray]:
        """All captions of clips: float32 `[captions, E]`, or texts; and which of the clips each is of, int64 `[captions]`."""
        counts = self.counts[clips]
        places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return self._take(np.repeat(clips, counts), places), np.repeat(np.arange(len(clips)), counts)

    def _take(self, clips: np.ndarray, places: np.ndarray) -> np.ndarray | list[str]:
        """The captions at places `[B]` among all of each clip."""
        ends = self._ends[:, clips]
        which = (places >= ends).sum(axis=0)
        before = np.where(which > 0, ends[np.maximum(which - 1, 0), np.arange(len(clips))], 0)
        rows = self._begins[which, clips] + places - before
        taken = [(np.flatnonzero(which == n), captions) for n, captions in enumerate(self.files)]
        if self.width is None:
            texts = np.empty(len(clips), dtype=object)
            for here, captions in taken:
                texts[here] = captions.take(rows[here])
            return texts.tolist()
        values = np.empty((len(clips), self.width), dtype=np.float32)
        for here, captions in taken:
            values[here] = captions.take(rows[here])
        return values


def _find(whole: pa.Array, short: pa.Array, captions: Captions) -> tuple[np.ndarray, np.ndarray]:
    """First caption and number of captions of each clip in a file, int64 `[clips]`; 0 captions where the file has none."""
    ids = captions.ids.to_arrow()
    found = pc.coalesce(pc.index_in(whole, value_set=ids), pc.index_in(short, value_set=ids))
    place = found.fill_null(0).to_numpy().astype(np.int64)
    counts = np.where(found.is_valid().to_numpy(zero_copy_only=False), np.diff(captions.offsets)[place], 0)
    return captions.offsets[place], counts


class CaptionDataset(AudioDataset):
    """Crops of clips, each with one of its captions: `target` float32 `[B, E]`, or `texts`.

    Which caption is a function of (seed, epoch, position). The list is not repeated.

    Args:
        clips: the clips. Those without a caption are an error, or are removed from it.
        files: where the captions come from, all of one kind and width.
        input_frames, seed, noise, random_crop: as for AudioDataset.
        missing: what to do about clips without a caption: `error` or `skip`.

    Attributes:
        captions: all captions of each clip.
        target_width: E; None where captions are texts.

    Raises:
        UserError: clips have no caption, and `missing` is `error`; or no clip has one.
    """

    def __init__(
        self,
        clips: ClipStore,
        files: Sequence[Captions],
        input_frames: int,
        seed: int,
        noise: ClipStore | None = None,
        random_crop: bool = True,
        missing: str = "error",
    ):
        self.captions = ClipCaptions(clips.columns["file_name"], files)
        _handle_missing(clips, self.captions, missing)
        super().__init__(clips, input_frames, seed, noise, random_crop)
        self.target_width = self.captions.width
        self.digests = {"file_caption": " ".join(captions.digest() for captions in files)}

    def added(self, clips: np.ndarray, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        drawn = self.captions.draw(clips, uniform(self.seed, epoch, positions, Purpose.CAPTION))
        return {"texts": drawn} if self.captions.width is None else {"target": torch.from_numpy(drawn)}


def _handle_missing(clips: ClipStore, captions: ClipCaptions, missing: str) -> None:
    """Refuse or remove clips without a caption, and log how many captions the others have."""
    source, total = clips.source, len(clips)
    has_none = np.flatnonzero(captions.counts == 0)
    files = ", ".join(str(each.source) for each in captions.files)
    if len(has_none) == total:
        raise UserError(
            f"none of the {total} clips of {source} has a caption in {files}: the ids there are such as "
            f"{captions.files[0].ids[0]!r}, the clips such as {clips.name(0)!r}"
        )
    if len(has_none) and missing == "error":
        raise UserError(
            f"{len(has_none)} of the {total} clips of {source} have no caption in {files}, "
            f"the first {clips.where(int(has_none[0]))}: --missing_captions skip leaves them out"
        )
    if len(has_none):
        logger.warning("%s: %d of %d clips have no caption and are left out", source, len(has_none), total)
        kept = np.flatnonzero(captions.counts)
        clips.keep(kept)
        captions.keep(kept)
    logger.info("%s: %d clips with %d captions", source, len(clips), captions.counts.sum())
