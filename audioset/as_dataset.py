"""Earlier name of m2d.data.label_dataset."""

from m2d.data.label_dataset import LIST_COLUMNS, ASDataset, LabelTable, read_weights

__all__ = ["LIST_COLUMNS", "ASDataset", "LabelTable", "read_weights"]
