"""One batch of samples."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Batch:
    """What is read of B samples of one epoch; noise mixing, normalisation and masks come later, on the device.

    Attributes:
        clean: log-mel crops, not normalised, `[B, 1, n_mels, frames]`, of the float type in which the store holds them.
        position: places in the epoch's order, int64 `[B]`.
        index: samples of the data set, int64 `[B]`.
        epoch: the epoch, from 0.
        first: the first of `position`, on the host.
        noise: background noise crops of the shape of `clean`, where there is a noise list.
        target: offline targets: `[B, T, E]` (M2D-S), `[B, classes]` (M2D-AS), a caption's embedding `[B, E]` (M2D-CLAP).
        texts: captions, one of each clip (M2D-CLAP with a text encoder that is trained).
        skipped: clips that could not be read and were replaced (--skip_bad_files).
    """

    clean: torch.Tensor
    position: torch.Tensor
    index: torch.Tensor
    epoch: int
    first: int = 0
    noise: torch.Tensor | None = None
    target: torch.Tensor | None = None
    texts: list[str] | None = None
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.index)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if torch.is_tensor(value)}

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device; from pinned memory the copy is asynchronous."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        return replace(self, **{name: change(tensor) for name, tensor in self.tensors().items()})
