"""A fine-tuned model with the names of its classes."""

from pathlib import Path

import numpy as np
import torch

from ..checkpoint.weights import CheckpointError, read_weights
from ..utils.names import shown
from .classes import read_classes
from .runtime import RuntimeM2D


class Tagger:
    """From features to probabilities of named classes.

    Args:
        weights: the checkpoint.
        classes: a file that names its classes; None: the checkpoint's own names, or numbers.
        order: see `read_classes`.
        single: classes exclude each other (softmax); otherwise as the checkpoint says, or each independent (sigmoid).

    Attributes:
        names: of the classes.
        detects_events: the classifier was trained on time steps.

    Raises:
        FileNotFoundError, CheckpointError: the checkpoint cannot be used, or has no classifier.
        ValueError: the names do not fit it.
    """

    def __init__(self, weights: str | Path, classes: Path | None = None, order: str = "auto", single: bool = False):
        read = read_weights(weights)
        if "head.weight" not in read.head:
            raise CheckpointError(f"{shown(read.path)} has no classifier: tags need a fine-tuned checkpoint, with its head")
        count = read.head["head.weight"].shape[0]
        self.names = read_classes(classes, order) if classes else read.classes or [f"class {i}" for i in range(count)]
        if len(self.names) != count:
            raise ValueError(f"--classes {shown(classes or weights)} names {len(self.names)} classes; the classifier has {count}")
        self.single = single or read.single_label
        self.detects_events = read.events
        self.runtime = RuntimeM2D(weight_file=read.path, num_classes=count)

    @torch.no_grad()
    def probabilities(self, features: torch.Tensor) -> np.ndarray:
        """Probabilities `[N, classes]` of features averaged over some time, `[N, feature_d]`."""
        logits = self.runtime.classify(features.to(self.runtime.head.weight.device)).float()
        return (logits.softmax(dim=1) if self.single else logits.sigmoid()).cpu().numpy()
