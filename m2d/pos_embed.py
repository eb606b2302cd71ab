"""Published name of m2d.models.pos_embed."""

from .models.pos_embed import resize_positions, sincos_positions

__all__ = ["resize_positions", "sincos_positions"]
