"""Fixed 2-D sine-cosine position embeddings, and resizing them along time."""

import torch
import torch.nn.functional as F


def _sincos(dim: int, positions: torch.Tensor) -> torch.Tensor:
    """`[sin(p·w), cos(p·w)]` with w_i = 10000^(-i / (dim/2)): `[len(positions), dim]`."""
    frequencies = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_positions(dim: int, grid_size: tuple[int, int]) -> torch.Tensor:
    """Positions of a class token and of the patches of a grid, frequency-major.

    Half of the values encode the time index, the other half the frequency index, after the 1-D formula of
    Vaswani et al. (2017, section 3.5) per axis; the class token's position is zeros.

    Args:
        dim: embedding width D, a multiple of 4.
        grid_size: patches along (frequency, time).

    Returns:
        float32 `[1, 1 + F*T, D]`.
    """
    if dim % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {dim}")
    rows, columns = grid_size
    device = torch.empty(0).device
    with torch.device("cpu"):  # the meta device computes by Python code that imports PyTorch's compiler
        time = _sincos(dim // 2, torch.arange(columns)).repeat(rows, 1)
        frequency = _sincos(dim // 2, torch.arange(rows)).repeat_interleave(columns, dim=0)
        patches = torch.cat([time, frequency], dim=1)
        positions = torch.cat([torch.zeros(1, dim, dtype=torch.float64), patches]).float()[None]
    return positions.to(device)


def resize_positions(pos_embed: torch.Tensor, grid_size: tuple[int, int], new_columns: int) -> torch.Tensor:
    """Fit stored positions to another number of time steps: bicubic interpolation for more, trimming for fewer.

    Args:
        pos_embed: `[1, 1 + F*T, D]` with the class token first.
        grid_size: the (F, T) it was made for.
        new_columns: the time steps wanted.

    Returns:
        `[1, 1 + F*new_columns, D]`.

    Raises:
        ValueError: the stored positions are of another grid, or no time step is wanted.
    """
    rows, columns = grid_size
    if new_columns < 1:
        raise ValueError(f"positions are needed for one time step at least, not for {new_columns} time steps")
    if pos_embed.shape[1] != 1 + rows * columns:
        raise ValueError(f"{pos_embed.shape[1]} positions do not fit a class token and a grid of {rows} x {columns}")
    if new_columns == columns:
        return pos_embed
    cls_token, patches = pos_embed[:, :1], pos_embed[:, 1:]
    grid = patches.reshape(1, rows, columns, -1)
    if new_columns > columns:
        size = (rows, new_columns)
        grid = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bicubic", antialias=False).permute(0, 2, 3, 1)
    return torch.cat([cls_token, grid[:, :, :new_columns].flatten(1, 2)], dim=1)
