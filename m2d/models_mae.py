"""Published name of m2d.models.registry: model classes, and the builders by name."""

from .models.registry import *  # noqa: F403
