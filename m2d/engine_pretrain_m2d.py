"""Published name of m2d.train.loop."""

from .train.loop import train as train_one_epoch

__all__ = ["train_one_epoch"]
