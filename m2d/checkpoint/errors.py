"""The error of all that reads checkpoints."""

from ..utils.errors import FileError


class CheckpointError(FileError):
    """A checkpoint that cannot be used: what is wrong with it, and what to do."""


class MissingWeightsError(CheckpointError):
    """A checkpoint without a part of the model's encoder."""
