"""What messages quote of errors of other libraries."""

import pytest

from m2d.utils.errors import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("\nCUDA error: out of memory\nand advice"), "CUDA error: out of memory"),
        (ValueError("one line"), "one line"),
        (AssertionError(), "AssertionError"),
        (OSError("  \n"), "OSError"),
    ],
)
def test_the_first_line_of_an_error(error, expected):
    assert first_line(error) == expected
