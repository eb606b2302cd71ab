"""Replay what a CUDA device computes again and again, in place of launching its kernels one by one."""

import logging
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from ..utils.errors import first_line

logger = logging.getLogger("m2d")

Compute: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

# Shapes that are replayed: each graph keeps its input, and what it computes of it while another one may not need the memory.
_MOST_GRAPHS = 4
# A graph may use other kernels, which round otherwise in half precision; one that reads the wrong memory is off by the whole.
_TOLERANCE = 0.05


class Replay:
    """A function of one tensor, to one, replayed as a CUDA graph from the second tensor of a shape on.

    The host then launches one thing in place of a kernel at a time. Nothing in the function may depend on values, or wait for
    the device, and what else it reads must stay where it is. Other shapes than the first few to come twice are computed as
    they are, and so is all where capturing fails, or a graph's first result is not what the function computes.

    Args:
        compute: the function; called within `torch.no_grad`.
        most: graphs that are kept.
    """

    def __init__(self, compute: Compute, most: int = _MOST_GRAPHS):
        self._compute, self._capture, self._most = compute, Capture(), most
        self._seen: set[torch.Size] = set()
        self._graphs: dict[torch.Size, Compute] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape in self._seen and x.shape not in self._graphs and len(self._graphs) < self._most:
            self._try_capture(x)
        self._seen.add(x.shape)
        return self._graphs.get(x.shape, self._compute)(x)

    def _try_capture(self, x: torch.Tensor) -> None:
        try:
            graph = self._capture(self._compute, x)
            if not is_close(graph(x), self._compute(x)):
                raise RuntimeError("a graph's result differs from what is computed without it")
            self._graphs[x.shape] = graph
        except RuntimeError as error:
            self._graphs, self._most = {}, 0
            logger.warning("computing without CUDA graphs: %s", first_line(error))


def is_close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results differ by no more than rounding in half precision; numbers that are not finite count as zero."""
    found, expected = (values.float().nan_to_num(0, 0, 0) for values in (found, expected))
    return bool((found - expected).norm() <= _TOLERANCE * expected.norm())


class Capture:
    """Captures CUDA graphs that share their memory, since one is replayed after the other, on one stream."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Compute, x: torch.Tensor) -> Compute:
        """A function that replays `compute` for tensors like x, which it copies, and returns a tensor of its own."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        given, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
        # A stream of x's device, which need not be the current one. Kernels are loaded and tuned on it before the capture.
        stream, current = torch.cuda.Stream(x.device), torch.cuda.current_stream(x.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            compute(given)
        current.wait_stream(stream)
        try:
            # Other threads lock memory meanwhile, which is nothing to this stream.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                found = compute(given)
        except RuntimeError:
            torch.cuda.set_stream(current)  # where a capture breaks off, torch leaves its stream in place
            raise

        def replay(x: torch.Tensor) -> torch.Tensor:
            given.copy_(x)
            graph.replay()
            return found.clone()

        return replay
