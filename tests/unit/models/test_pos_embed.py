"""Sine-cosine positions against the formula written out, and their resizing against bicubic interpolation by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m2d.models.pos_embed import resize_positions, sincos_positions

GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 20))


def axis_by_hand(dim, position):
    """`[sin(p·w), cos(p·w)]`, w_i = 10000^(-i/(D/4)), for one axis: D/2 values."""
    w = [10000 ** (-i / (dim / 4)) for i in range(dim // 4)]
    return [math.sin(position * v) for v in w] + [math.cos(position * v) for v in w]


def cubic_weight(distance, a=-0.75):
    """Keys' cubic convolution kernel with the `a` that torch uses."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic_by_hand(rows, new_columns):
    """`[F, T, D]` to `[F, new_columns, D]`: pixel centres aligned, edges repeated; rows keep their places."""
    columns = rows.shape[1]
    out = np.zeros((rows.shape[0], new_columns, rows.shape[2]))
    for t in range(new_columns):
        source = (t + 0.5) * columns / new_columns - 0.5
        for k in range(math.floor(source) - 1, math.floor(source) + 3):
            out[:, t] += cubic_weight(source - k) * rows[:, min(max(k, 0), columns - 1)]
    return out


@given(quarter=st.integers(1, 24), grid=GRIDS)
def test_each_patch_has_the_values_of_its_time_then_of_its_frequency(quarter, grid):
    dim, (rows, columns) = 4 * quarter, grid
    positions = sincos_positions(dim, grid)
    assert positions.shape == (1, 1 + rows * columns, dim)
    assert positions.dtype == torch.float32
    expected = [[0.0] * dim]
    expected += [axis_by_hand(dim, t) + axis_by_hand(dim, f) for f in range(rows) for t in range(columns)]
    np.testing.assert_allclose(positions[0].numpy(), np.array(expected), atol=1e-6)


def test_positions_do_not_depend_on_the_size_of_the_grid():
    long, short = sincos_positions(32, (5, 13)), sincos_positions(32, (5, 7))
    assert torch.equal(resize_positions(long, (5, 13), 7), short)


@pytest.mark.parametrize("dim", [1, 2, 30, 97])
def test_a_width_that_does_not_divide_is_refused(dim):
    with pytest.raises(ValueError, match=f"multiple of 4, not {dim}"):
        sincos_positions(dim, (5, 13))


@given(grid=GRIDS, new_columns=st.integers(1, 40))
def test_resizing_interpolates_or_trims_along_time(grid, new_columns):
    rows, columns = grid
    stored = torch.from_numpy(np.random.RandomState(rows * 100 + columns).standard_normal((1, 1 + rows * columns, 8)))
    resized = resize_positions(stored, grid, new_columns)
    assert resized.shape == (1, 1 + rows * new_columns, 8)
    assert torch.equal(resized[:, 0], stored[:, 0])
    before = stored[0, 1:].reshape(rows, columns, 8).numpy()
    after = resized[0, 1:].reshape(rows, new_columns, 8).numpy()
    expected = bicubic_by_hand(before, new_columns) if new_columns > columns else before[:, :new_columns]
    np.testing.assert_allclose(after, expected, atol=1e-9)


def test_the_same_number_of_columns_changes_nothing():
    stored = torch.randn(1, 1 + 5 * 13, 8)
    assert torch.equal(resize_positions(stored, (5, 13), 13), stored)


def test_positions_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="66 positions do not fit .* 5 x 12"):
        resize_positions(torch.zeros(1, 66, 8), (5, 12), 20)


@pytest.mark.parametrize("new_columns", [0, -3])
def test_no_columns_are_refused(new_columns):
    with pytest.raises(ValueError, match=f"{new_columns} time steps"):
        resize_positions(torch.zeros(1, 66, 8), (5, 13), new_columns)
