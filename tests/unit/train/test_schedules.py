"""Learning rate and EMA decay against their closed forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2d.train.optim import ema_decay, learning_rate

fractions = st.floats(0, 1)


def test_the_first_rate_is_zero_and_the_warm_up_is_linear():
    assert [learning_rate(p, 1e-3, 1e-5, 20, 300) for p in (0, 5, 10, 15)] == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4], abs=0)


def test_peak_half_way_and_end():
    assert learning_rate(20, 1e-3, 1e-5, 20, 300) == 1e-3
    assert learning_rate(160, 1e-3, 1e-5, 20, 300) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(300, 1e-3, 1e-5, 20, 300) == pytest.approx(1e-5)
    # A third of the way the cosine is one half: three quarters of the range are left.
    assert learning_rate(20 + 280 / 3, 1e-3, 0, 20, 300) == pytest.approx(0.75e-3)


@given(fractions, st.floats(1e-6, 1), st.floats(0, 1e-7), st.integers(0, 40), st.integers(41, 1000))
def test_the_rate_stays_within_its_bounds_and_falls_after_the_peak(fraction, peak, lowest, warmup, epochs):
    position = warmup + fraction * (epochs - warmup)
    here = learning_rate(position, peak, lowest, warmup, epochs)
    assert lowest * (1 - 1e-9) <= here <= peak * (1 + 1e-9)
    assert learning_rate(min(position + 1, epochs), peak, lowest, warmup, epochs) <= here * (1 + 1e-9)
    assert here == pytest.approx(lowest + (peak - lowest) * math.cos(math.pi * fraction / 2) ** 2, rel=1e-6, abs=1e-12)


def test_without_warm_up_the_rate_starts_at_its_peak():
    assert learning_rate(0, 0.1, 0, 0, 10) == 0.1


@pytest.mark.parametrize("position", [0, 1, 4.75])
def test_a_run_shorter_than_its_warm_up_only_warms_up(position):
    assert learning_rate(position, 1.0, 0.0, 20, 5) == position / 20


def test_a_run_that_is_all_warm_up_ends_without_a_division_by_zero():
    assert learning_rate(20, 1.0, 0.25, 20, 20) in (0.25, 1.0)


def test_decay_ends():
    assert ema_decay(0, 1000, 0.99995, 0.99999) == 0.99995
    assert ema_decay(999, 1000, 0.99995, 0.99999) == pytest.approx(0.99999, abs=1e-15)


@given(st.integers(2, 10**6), fractions)
def test_decay_is_linear(updates, fraction):
    update = int(fraction * (updates - 1))
    assert ema_decay(update, updates, 0.5, 0.9) == pytest.approx(0.5 + 0.4 * update / (updates - 1))


def test_one_update_and_updates_beyond_the_last():
    assert ema_decay(0, 1, 0.5, 0.9) == 0.5
    assert ema_decay(12, 10, 0.5, 0.9) == pytest.approx(0.9)
