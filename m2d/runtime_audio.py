"""Published name of m2d.inference.runtime."""

from .inference.runtime import Config, RuntimeM2D, get_backbone, get_timestamps, get_to_melspec, parse_sizes_by_name

__all__ = ["Config", "RuntimeM2D", "get_backbone", "get_timestamps", "get_to_melspec", "parse_sizes_by_name"]
