"""Batches read ahead by threads of the training process, and copied to the device one batch ahead.

The readers spend their time in system calls and copies, outside Python's lock; so they need no processes of their
own, and a batch goes nowhere: processes would copy each into fresh shared memory, which costs several times the reading.
"""

from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from ..utils.parallel import map_ahead
from .batch import Batch
from .dataset import AudioDataset
from .sampler import SampleKey


class BatchLoader:
    """Reads the batches of a data set ahead, in order.

    Args:
        dataset: what to read from.
        workers: threads that read; 0 reads when a batch is asked for.
        pin_memory: hand out batches in page-locked memory, for asynchronous copies to CUDA.
        ahead: batches per worker that are read ahead.
    """

    def __init__(self, dataset: AudioDataset, workers: int = 1, pin_memory: bool = False, ahead: int = 2):
        self.dataset, self.pin_memory = dataset, pin_memory
        self.depth = workers * ahead
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reader") if workers else None

    def batches(self, keys: Iterable[list[SampleKey]]) -> Iterator[Batch]:
        """The batches that these lists of keys ask for.

        Raises:
            FileNotFoundError, FileError: as reading the data set does; raised instead of returning the batch.
        """
        if self._pool is None:
            yield from map(self._read, keys)
            return
        yield from map_ahead(self._pool, self._read, keys, self.depth)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, keys: list[SampleKey]) -> Batch:
        batch = self.dataset.__getitems__(keys)
        return batch.pin_memory() if self.pin_memory else batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches on a device; on CUDA each copy is begun one batch ahead, on a stream of its own."""
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = batch.to(device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for tensor in following.tensors().values():
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead
