"""Batches read ahead by threads of the training process.

The readers spend their time in system calls and copies, outside Python's lock; so they need no processes of their
own, and a batch goes nowhere: processes would copy each into fresh shared memory, which costs several times the reading.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from .dataset import AudioDataset, Batch
from .sampling import SampleKey


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
            FileNotFoundError, ValueError: as the data set's reading, in the place of the batch.
        """
        if self._pool is None:
            yield from map(self._read, keys)
            return
        keys = iter(keys)
        waiting: deque[Future] = deque(self._pool.submit(self._read, each) for each in islice(keys, self.depth))
        try:
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(self._pool.submit(self._read, each) for each in islice(keys, 1))
                yield batch
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _read(self, keys: list[SampleKey]) -> Batch:
        batch = self.dataset.__getitems__(keys)
        return {name: value.pin_memory() for name, value in batch.items()} if self.pin_memory else batch
