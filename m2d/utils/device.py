"""Which device a program computes on, and copies from and to it that the host does not wait for."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def pick_device(name: str) -> torch.device:
    """The device of a flag: `auto` is CUDA where there is one, else MPS, else the CPU.

    Raises:
        ValueError: the device is unknown, or this machine has none.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "mps", "cpu"):
        raise ValueError(f"--device {name}: unknown; choose auto, cuda, mps or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has no such CUDA device; --device auto takes what there is")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {name}: this machine has no MPS device; --device auto takes what there is")
    return device


def no_tf32() -> None:
    """Float32 products and convolutions in float32: TF32 would move the quiet bands of spectrograms."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


class _Float32:
    """The setting of a process for float32 products on CUDA, made exact while any thread is within `float32_products`."""

    def __init__(self) -> None:
        self._lock, self._users, self._chosen = threading.Lock(), 0, None

    def enter(self) -> None:
        """A thread needs exact products."""
        with self._lock:
            if not self._users:
                name, exact = self._name()
                self._chosen = getattr(torch.backends.cuda.matmul, name)
                setattr(torch.backends.cuda.matmul, name, exact)
            self._users += 1

    def leave(self) -> None:
        """It needs them no longer."""
        with self._lock:
            self._users -= 1
            if not self._users:
                setattr(torch.backends.cuda.matmul, self._name()[0], self._chosen)

    @staticmethod
    def _name() -> tuple[str, object]:
        # Since PyTorch 2.9 there are two names for the setting, and reading the older one fails where the newer one was used.
        return ("fp32_precision", "ieee") if hasattr(torch.backends.cuda.matmul, "fp32_precision") else ("allow_tf32", False)


_float32 = _Float32()


@contextmanager
def float32_products(device: torch.device) -> Iterator[None]:
    """Within this context float32 products on a device are in float32, whatever the program chose for them elsewhere."""
    if device.type != "cuda" or torch.compiler.is_compiling():
        yield
        return
    _float32.enter()
    try:
        yield
    finally:
        _float32.leave()


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on a device; to CUDA by page-locked memory, so that the host does not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class OnHost:
    """Tensors on their way to the host. CUDA copies them while the host continues; `get` waits for these copies alone."""

    def __init__(self, *tensors: torch.Tensor):
        self._tensors = tuple(map(self._copy, tensors))
        self._copied = None
        if tensors[0].is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tensors[0].device))

    def get(self) -> tuple[torch.Tensor, ...]:
        """The tensors, on the host."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._tensors

    @staticmethod
    def _copy(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_cuda:
            return tensor.cpu()
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
