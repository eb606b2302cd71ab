"""Whether our own Triton kernels run on a device."""

import logging
from functools import cache
from importlib.util import find_spec

import torch

from ...utils.errors import first_line

logger = logging.getLogger("m2d")


def has_triton() -> bool:
    """Whether triton is installed."""
    return find_spec("triton") is not None


@cache
def kernels_run(device: torch.device) -> bool:
    """Whether our kernels run on a device: CUDA, of capability 8.0 or more. One is tried, once; a warning says why it fails.

    Triton needs a C compiler and Python's headers, which slim images do not have.
    """
    if device.type != "cuda" or not has_triton():
        return False
    try:
        if torch.cuda.get_device_properties(device).major < 8:
            return False
        from .add_norm import try_kernel

        try_kernel(device)
    except Exception as error:  # of the compiler, the driver, or triton's import
        reason = f"{type(error).__name__}: {first_line(error)}"
        logger.warning("computing without our own kernels, so slower, as triton cannot run here: %s", reason)
        logger.warning("triton needs a C compiler and Python's headers (Debian, Ubuntu: apt-get install gcc python3-dev)")
        return False
    return True
