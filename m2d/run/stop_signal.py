"""SIGTERM, SIGINT and SIGUSR1 stop a run at its next update, on all ranks at the same one."""

import signal
import threading

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """Listens from `__enter__` to `__exit__`; a second SIGINT interrupts at once.

    The ranks agree without waiting for each other: each update starts an all-reduce of a flag and reads the result of the
    one before, so that all stop at the same update.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, error: type | None, *_) -> None:
        if self._pending is not None and error is None:
            self._pending[1].wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def agreed(self) -> bool:
        """Whether the run is to stop now; to be called by all ranks after the same updates."""
        if not dist.is_initialized():
            return self.received is not None
        asked = False
        if self._pending is not None:
            flag, work = self._pending
            work.wait()
            asked = bool(flag.item())
        flag = torch.tensor(int(self.received is not None))
        self._pending = (flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True))
        return asked
