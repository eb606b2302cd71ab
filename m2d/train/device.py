"""How the device computes: precision of matrix products, compilation, and its peak. All such choices stand here.

The order in which a model is made ready is: weights loaded, moved to the device, activations to be recomputed marked,
compiled, wrapped for several processes or sharded.
"""

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from ..utils.malloc import keep_freed_memory

#: Dense matrix products per second by device name, float16 and bfloat16 (NVIDIA's data sheets, without sparsity).
PEAK_FLOPS = {
    "V100": 125e12,
    "T4": 65e12,
    "A10": 125e12,
    "A30": 165e12,
    "A40": 150e12,
    "A100": 312e12,
    "A6000": 155e12,
    "L4": 121e12,
    "L40S": 362e12,
    "L40": 181e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}
_STEPS_TO_A_GRAPH = 3  # one warms up, one is recorded, one replayed
_MEASURED_SIZE = {"cuda": 8192, "mps": 4096, "cpu": 1024}

logger = logging.getLogger("m2d")


def configure(device: torch.device) -> None:
    """TF32 for what float32 is left beside mixed precision; cuDNN picks its kernels, since all shapes are static.

    On a CPU the process keeps the memory that a step frees.
    """
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Floating point operations per second of the device's matrix products: from a table, else measured."""
    if device.type == "cuda" and precision != torch.float32:
        name = torch.cuda.get_device_name(device)
        for key in sorted(PEAK_FLOPS, key=len, reverse=True):
            if key in name:
                return PEAK_FLOPS[key]
    return measured_flops(device, precision)


def measured_flops(device: torch.device, precision: torch.dtype, repeats: int = 5) -> float:
    """The best of a few large matrix products, in operations per second."""
    size = _MEASURED_SIZE.get(device.type, 1024)
    a = torch.randn(size, size, device=device, dtype=precision)
    best = float("inf")
    for _ in range(repeats):
        synchronize(device)
        begin = time.perf_counter()
        a @ a
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device) -> int:
    """Highest memory in use on the device so far, in bytes; 0 where the device does not tell."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def compile_in_place(model: nn.Module, cuda_graphs: bool = False) -> None:
    """Compile a model's forward for its one input size, on request with its kernels recorded and replayed (CUDA graphs)."""
    model.compile(dynamic=False, mode="reduce-overhead" if cuda_graphs else None)


def try_compile(model: nn.Module, try_step: Callable[[], None], cuda_graphs: bool = False) -> bool:
    """Compile a model's forward in place and try it; where that fails, say why and go on without.

    Args:
        model: the model.
        try_step: one forward and backward pass, after which nothing but gradients has changed.
        cuda_graphs: as for `compile_in_place`.

    Returns:
        whether the model is compiled.
    """
    begin = time.perf_counter()
    compile_in_place(model, cuda_graphs)
    try:
        for _ in range(_STEPS_TO_A_GRAPH if cuda_graphs else 1):
            try_step()
            model.zero_grad(set_to_none=True)
    except Exception as error:
        # Whatever a compiler stumbles over, the model itself runs without it.
        model._compiled_call_impl = None
        logger.warning("not compiled, running as it is: %s: %s", type(error).__name__, str(error).strip().split("\n")[0])
        return False
    finally:
        model.zero_grad(set_to_none=True)
    logger.info("compiled in %.0f s", time.perf_counter() - begin)
    return True
