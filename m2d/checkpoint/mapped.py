"""A checkpoint whose tensors are mapped from its file: what is not used is not read."""

import ctypes
import mmap
import sys
from pathlib import Path

import torch

from .errors import CheckpointError


class MappedFile:
    """The file of mapped tensors. Reading a mapping behind the end of its file kills the process (SIGBUS)."""

    def __init__(self, path: Path):
        self.path, self._size = path, path.stat().st_size

    def check(self) -> None:
        """Look whether the file still has its size, before a tensor is read.

        A file that is cut between this and the read is not caught: programs replace checkpoints, and do not write into them.

        Raises:
            CheckpointError: it has another one, or is gone.
        """
        try:
            size = self.path.stat().st_size
        except OSError:
            size = -1
        if size < self._size:
            raise CheckpointError(f"{self.path} was changed while it was read: it had {self._size} bytes")

    def release(self, tensor: torch.Tensor) -> None:
        """Drop a tensor's pages from memory; they are read from the file again where they are used again.

        So the file does not count beside the model that it is copied to.
        """
        if not sys.platform.startswith("linux"):
            return
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
