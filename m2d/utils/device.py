"""Which device a program computes on."""

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
        raise ValueError(f"--device {name}: unknown; choose auto, cuda, mps or cpu") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has no such CUDA device; --device auto takes what there is")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"--device {name}: this machine has no MPS device; --device auto takes what there is")
    return device
