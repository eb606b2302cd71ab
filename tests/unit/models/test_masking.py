"""Mask plans: counts, whole rows and columns, runs, and that every choice is equally likely."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from m2d.models.masking import (
    MaskPlan,
    continuous_plan,
    draw_continuous_plan,
    draw_random_plan,
    draw_structured_plan,
    keep_count,
    random_plan,
    structured_counts,
    structured_plan,
)

CPU = torch.device("cpu")
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 70))
RATIOS = st.floats(0, 1)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
SEEDS = st.integers(0, 2**31)


def scores(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def hidden_grid(plan, grid):
    """bool `[B, F, T]`: hidden patches."""
    return plan.mask.bool().unflatten(1, grid)


def assert_sound(plan, batch, length):
    """Both index arrays are permutations, inverse to one another, and exactly `keep` patches of each clip are visible."""
    in_order = torch.arange(length).expand(batch, length)
    assert plan.ids_restore.shape == plan.mask.shape == (batch, length)
    assert plan.mask.dtype == torch.float32
    assert torch.equal(plan.ids_restore.sort(dim=1).values, in_order)
    assert torch.equal(plan.ids_shuffle.gather(1, plan.ids_restore), in_order)
    assert (plan.mask.sum(dim=1) == length - plan.keep).all()
    assert (plan.mask.gather(1, plan.ids_shuffle[:, : plan.keep]) == 0).all()
    assert (plan.mask.gather(1, plan.ids_shuffle[:, plan.keep :]) == 1).all()


def uniform_p_value(counts, number_of_outcomes):
    """Chi-square p-value for all outcomes being equally likely."""
    observed = [*counts.values(), *[0] * (number_of_outcomes - len(counts))]
    assert len(observed) == number_of_outcomes
    return stats.chisquare(observed).pvalue


# ---------------------------------------------------------------- random


@pytest.mark.parametrize(
    "length, ratio, keep",
    [(190, 0.8, 37), (190, 0.7, 57), (65, 0.7, 19), (65, 0.75, 16), (100, 0.6, 40), (65, 0, 65), (65, 1, 0)],
)
def test_published_counts(length, ratio, keep):
    assert keep_count(length, ratio) == keep


@given(seed=SEEDS, batch=st.integers(1, 5), length=st.integers(1, 400), ratio=RATIOS)
def test_random_plan_keeps_the_lowest_scores(seed, batch, length, ratio):
    s = scores(seed, batch, length)
    plan = random_plan(s, ratio)
    assert plan.keep == int(length * (1 - ratio))
    assert_sound(plan, batch, length)
    ranks = torch.from_numpy(stats.rankdata(s.numpy(), method="ordinal", axis=1)) - 1
    assert torch.equal(plan.ids_restore, ranks)


def test_random_plan_takes_integer_scores_and_breaks_ties_in_order():
    plan = random_plan(torch.tensor([[5, 1, 5, 1]]), 0.5)
    assert plan.ids_shuffle.tolist() == [[1, 3, 0, 2]]
    assert plan.mask.tolist() == [[1, 0, 1, 0]]


def test_every_subset_and_every_order_of_patches_is_equally_likely():
    plan = draw_random_plan(6000, (1, 5), 0.5, CPU)
    subsets = Counter(tuple(row) for row in plan.mask.int().tolist())
    orders = Counter(tuple(row) for row in plan.ids_shuffle.tolist())
    assert uniform_p_value(subsets, 10) > 1e-3
    assert uniform_p_value(orders, 120) > 1e-3


def test_clips_of_a_batch_and_draws_differ_and_the_seed_repeats_them():
    first, second = (draw_random_plan(4, (5, 13), 0.7, CPU).ids_restore for _ in range(2))
    assert len({tuple(row) for row in [*first.tolist(), *second.tolist()]}) == 8
    torch.manual_seed(0)
    assert torch.equal(draw_random_plan(4, (5, 13), 0.7, CPU).ids_restore, first)


# ---------------------------------------------------------------- structured


def counts_by_hand(rows, columns, ratio, u):
    """NF and NT as published; at least one column stays visible at ratios near 1."""
    nf = int(np.floor(rows * (ratio + 1 / rows) * u))
    nf = rows - 1 if nf > rows - 1 else nf
    share_left = ratio + 0.5 / columns - nf / rows
    nt = int(np.floor(columns * share_left)) if share_left > 0 else 0
    return nf, min(nt, columns - 1)


@given(grid=GRIDS, ratio=RATIOS, u=BELOW_ONE)
def test_structured_counts_follow_the_published_formula(grid, ratio, u):
    assert structured_counts(grid, ratio, u) == counts_by_hand(*grid, ratio, u)


def test_structured_counts_of_a_worked_example():
    """5 x 62 at 0.5: NF = int(5 · 0.7 · u); NT = int(62 · (0.5 + 0.5/62 - NF/5))."""
    assert structured_counts((5, 62), 0.5, 0.0) == (0, 31)
    assert structured_counts((5, 62), 0.5, 0.3) == (1, 19)
    assert structured_counts((5, 62), 0.5, 0.6) == (2, 6)
    assert structured_counts((5, 62), 0.5, 0.9) == (3, 0)


@given(seed=SEEDS, batch=st.integers(1, 4), grid=GRIDS, ratio=RATIOS, u=BELOW_ONE)
def test_structured_plan_hides_whole_rows_and_columns_and_nothing_else(seed, batch, grid, ratio, u):
    rows, columns = grid
    plan = structured_plan(scores(seed, batch, rows), scores(seed + 1, batch, columns), ratio, u)
    nf, nt = counts_by_hand(rows, columns, ratio, u)
    assert plan.keep == (rows - nf) * (columns - nt) > 0
    assert_sound(plan, batch, rows * columns)
    hidden = hidden_grid(plan, grid)
    struck_rows, struck_columns = hidden.all(dim=2), hidden.all(dim=1)
    assert (struck_rows.sum(dim=1) == nf).all()
    assert (struck_columns.sum(dim=1) == nt).all()
    assert torch.equal(hidden, struck_rows[:, :, None] | struck_columns[:, None, :])


def test_structured_draws_strike_any_rows_and_columns_alike():
    """5 x 4 at 0.5: NF = 0, 1, 2, 3 with probabilities 1/3.5, 1/3.5, 1/3.5 and 0.5/3.5, then NT = 2, 1, 0, 0."""
    numbers, row_sets, column_sets = Counter(), Counter(), Counter()
    for _ in range(700):
        hidden = hidden_grid(draw_structured_plan(4, (5, 4), 0.5, CPU), (5, 4))
        rows, columns = hidden.all(dim=2), hidden.all(dim=1)
        assert len(set(rows.sum(dim=1).tolist())) == len(set(columns.sum(dim=1).tolist())) == 1
        numbers[int(rows[0].sum()), int(columns[0].sum())] += 1
        row_sets.update(tuple(r) for r in rows.int().tolist() if sum(r) == 2)
        column_sets.update(tuple(c) for c in columns.int().tolist() if sum(c) == 2)
    assert set(numbers) == {(0, 2), (1, 1), (2, 0), (3, 0)}
    expected = np.array([1, 1, 1, 0.5]) / 3.5 * 700
    assert stats.chisquare([numbers[k] for k in [(0, 2), (1, 1), (2, 0), (3, 0)]], expected).pvalue > 1e-3
    assert uniform_p_value(row_sets, 10) > 1e-3
    assert uniform_p_value(column_sets, 6) > 1e-3


# ---------------------------------------------------------------- continuous


def columns_by_hand(starts, columns, run, hidden):
    """Hide runs at `starts` until there are enough columns; the last run then gives back the first ones it hid."""
    struck = []
    for start in starts:
        if len(struck) >= hidden:
            break
        fresh = [t for t in range(start, start + run) if t not in struck]
        struck += fresh[max(0, len(struck) + len(fresh) - hidden) :]
    return sorted(struck)


@st.composite
def continuous_cases(draw):
    rows, columns = draw(GRIDS)
    return (rows, columns), draw(st.integers(1, columns)), draw(RATIOS), draw(SEEDS), draw(st.integers(1, 4))


@given(case=continuous_cases())
def test_continuous_plan_hides_exactly_as_many_whole_columns_as_asked_in_runs(case):
    (rows, columns), run, ratio, seed, batch = case
    s = scores(seed, batch, columns - run + 1)
    plan = continuous_plan(s, (rows, columns), run, ratio)
    hidden = int(columns * ratio)
    assert plan.keep == rows * (columns - hidden)
    assert_sound(plan, batch, rows * columns)
    grid = hidden_grid(plan, (rows, columns))
    assert torch.equal(grid.all(dim=1), grid.any(dim=1))
    for clip, order in zip(grid[:, 0], s.argsort(dim=1, stable=True), strict=True):
        assert clip.nonzero().flatten().tolist() == columns_by_hand(order.tolist(), columns, run, hidden)


def test_a_run_is_in_columns_of_patches():
    plan = draw_continuous_plan(50, (5, 40), 0.25, CPU, run=10)
    for columns in hidden_grid(plan, (5, 40)).all(dim=1):
        places = columns.nonzero().flatten()
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + 10))


def test_continuous_draws_are_those_of_starts_drawn_with_replacement():
    """Starts that come again add nothing, so the sets of columns are as likely as those of the rule that draws on and on."""
    columns, run, ratio, draws = 7, 3, 0.6, 4000
    hidden = int(columns * ratio)
    plan = draw_continuous_plan(draws, (1, columns), ratio, CPU, run)
    ours = Counter(tuple(row.nonzero().flatten().tolist()) for row in plan.mask)
    random = np.random.RandomState(0)
    starts = random.randint(columns - run + 1, size=(draws, 60)).tolist()
    theirs = Counter(tuple(columns_by_hand(row, columns, run, hidden)) for row in starts)
    kinds = sorted(set(ours) | set(theirs))
    assert set(kinds) <= set(itertools.combinations(range(columns), hidden))
    assert stats.chi2_contingency([[ours[k] for k in kinds], [theirs[k] for k in kinds]]).pvalue > 1e-3


def test_continuous_masking_hides_the_edges_less_often_than_the_middle():
    """As the published rule does, and the first less often than the last, since the last run gives back from its start."""
    often = draw_continuous_plan(20000, (1, 52), 0.6, CPU, run=5).mask.mean(dim=0)
    assert often.sum().item() == pytest.approx(31, abs=1e-3)
    assert often[0] < often[51] < often[26] / 3


# ---------------------------------------------------------------- all of them


def test_a_plan_is_the_published_pair():
    """`(ids_restore, keep)` is what models take as a fixed plan."""
    ids_restore, keep = MaskPlan(torch.tensor([[2, 0, 1]]), 1)
    plan = MaskPlan(ids_restore, keep)
    assert plan.ids_shuffle.tolist() == [[1, 2, 0]]
    assert plan.mask.tolist() == [[1, 0, 1]]
