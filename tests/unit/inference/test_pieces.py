"""How inputs are cut: the pieces that are left are those of the whole."""

from hypothesis import given
from hypothesis import strategies as st

from m2d.inference.pieces import Cutting


@given(st.integers(0, 4000), st.sampled_from([(608, 16), (208, 16), (1001, 16), (304, 2)]), st.booleans(), st.data())
def test_the_pieces_that_are_left(frames, sizes, pads_short, data):
    cutting = Cutting(*sizes, pads_short)
    lengths = cutting.lengths(frames)
    done = data.draw(st.integers(0, frames // cutting.unit))
    assert cutting.lengths(frames, done) == lengths[done:]
