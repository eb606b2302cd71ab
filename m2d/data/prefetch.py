"""Copying the next batch to the device while the present one is being computed."""

from collections.abc import Iterable, Iterator

import torch

from .dataset import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; `epoch` stays on the host, where its value is read."""
    return {name: value if name == "epoch" else value.to(device, non_blocking=True) for name, value in batch.items()}


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on a device; on CUDA each copy is begun one batch ahead, on a stream of its own."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = to_device(batch, device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for value in following.values():
            if value.is_cuda:
                value.record_stream(torch.cuda.current_stream(device))
        ahead = following
    if ahead is not None:
        yield ahead
