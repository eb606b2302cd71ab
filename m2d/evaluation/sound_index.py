"""The nearest sounds in an index that `m2d embed --clap` wrote, searched in place on the disk."""

from pathlib import Path

import numpy as np
import torch

from ..data.npy import Member, find_members
from ..utils.errors import FileError
from ..utils.names import shown

# Rows compared at a time: few enough that their float32 copy stays in the processor's cache. A million of width 768 take
# 0.24 s of CPU in blocks of 2048 rows, 0.37 of 4096, 0.51 of 8192, 2.0 of 32768.
_ROWS = 2048


class SoundIndex:
    """Files and their vectors in M2D-CLAP's space, mapped from an .npz.

    Attributes:
        names: the files as they were named, `[N]`.
        vectors: float16 `[N, D]`, of length 1.
        weights: the checkpoint that made them.

    Raises:
        FileNotFoundError: no such file.
        FileError: it is no index of `m2d embed --clap`.
    """

    def __init__(self, path: Path):
        try:
            with path.open("rb") as file:
                members = find_members(file.fileno())
            if "clap.npy" not in members:
                raise ValueError("it holds no vectors of M2D-CLAP: make it by m2d embed --clap")
            names, vectors, weights = (_mapped(path, members[f"{name}.npy"]) for name in ("files", "embeddings", "clap"))
            if names.ndim != 1 or vectors.ndim != 2 or vectors.dtype != np.float16 or len(names) != len(vectors):
                raise ValueError(f"files {names.shape}, embeddings {vectors.shape} of {vectors.dtype}: not an index")
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no index {shown(path)}") from None
        except (ValueError, KeyError, OSError) as error:
            raise FileError(f"{shown(path)} is no index of sounds: {error}") from error
        self.names, self.vectors, self.weights = names, vectors, str(weights)

    def __len__(self) -> int:
        return len(self.names)

    def nearest(self, queries: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The files nearest to queries `[Q, D]`: cosines and rows, each `[Q, count]`, the nearest first.

        Raises:
            ValueError: queries of another width.
        """
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries of width {queries.shape[1]}, vectors of width {self.vectors.shape[1]}: use the same weights"
            )
        queries = torch.nn.functional.normalize(queries.float(), dim=1)
        cosines = torch.empty(len(queries), len(self))
        for start in range(0, len(self), _ROWS):
            block = torch.from_numpy(self.vectors[start : start + _ROWS])
            torch.mm(queries, block.float().T, out=cosines[:, start : start + _ROWS])
        best, rows = cosines.topk(min(count, len(self)), dim=1)
        return best, rows


def _mapped(path: Path, member: Member) -> np.ndarray:
    """An array of an .npz, mapped: what is not looked at is not read. Changes would stay in memory."""
    with path.open("rb") as file:
        file.seek(member.begin)
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f".npy format {version} is not supported")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject or file.tell() + dtype.itemsize * int(np.prod(shape)) > member.end:
            raise ValueError("it is damaged")
        return np.memmap(path, dtype, "c", file.tell(), shape)
