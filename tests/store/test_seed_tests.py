"""Student's t, Holm's correction and the bootstrap against their definitions, written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qdtune.pareto import resample
from qdtune.store.seed_tests import (
    MAX_SEEDS,
    apply_holm,
    correct_p,
    count_seeds_needed,
    half_width,
    t_test,
    win_shares,
)

P = st.sampled_from([0.001, 0.004, 0.01, 0.0125, 0.02, 0.025, 0.04, 0.05, 0.3, 1.0, np.nan])


def test_paired_is_the_t_test_of_the_seeds_that_are_there():
    chance = np.random.default_rng(0)
    table = chance.normal(0.2, 1, size=(40, 6))
    table[chance.random(table.shape) < 0.3] = np.nan
    found = t_test(table)
    for row, n, mean, std, p in zip(table, *found, strict=True):
        values = row[np.isfinite(row)]
        assert n == len(values)
        if n > 1:
            expected = (values.mean(), values.std(ddof=1), stats.ttest_1samp(values, 0).pvalue)
            assert (mean, std, p) == pytest.approx(expected)
        else:
            assert np.isnan([std, p]).all()


def test_paired_differences_that_are_equal_are_judged_by_their_signs():
    """As float32 accuracies have it, equal up to rounding; a t of a billion would be the rounding's."""
    table = np.full((3, 6), np.nan)
    table[0, :3] = 0.02 + np.array([0, 3e-8, -3e-8])
    table[1] = -0.02
    table[2, :4] = [0, 1e-9, 0, 0]
    found = t_test(table)
    assert found.p.tolist() == [2 * 0.5**3, 2 * 0.5**6, 1]
    assert found.std.tolist() == [0, 0, 0]


def test_paired_of_nothing_knows_nothing():
    assert t_test(np.empty((0, 3))).n.tolist() == []
    assert np.isnan(t_test(np.empty((2, 0))).p).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(P, max_size=8))
def test_holm_equals_adjusted_p_values_written_out(values):
    rejected, levels = apply_holm(values, 0.05)
    known = sorted((p, i) for i, p in enumerate(values) if p == p)
    adjusted, largest = {}, 0.0
    for k, (p, i) in enumerate(known):
        largest = max(largest, (len(known) - k) * p)
        adjusted[i] = largest
    assert rejected.tolist() == [adjusted.get(i, 1) <= 0.05 for i in range(len(values))]
    assert np.isfinite(levels).tolist() == [p == p for p in values]
    for p, fell, level in zip(values, rejected, levels, strict=True):
        assert fell == (p <= level)  # an interval at this level excludes zero exactly where the verdict is decided
    standing = {level for p, fell, level in zip(values, rejected, levels, strict=True) if p == p and not fell}
    assert standing <= {0.05 / (len(known) - sum(rejected))} if len(known) > sum(rejected) else not standing


def test_holm_lets_no_more_than_a_twentieth_of_null_families_speak():
    null = np.random.default_rng(3).normal(size=(2000, 15, 3))
    p = t_test(null.reshape(-1, 3)).p.reshape(2000, 15)
    false = np.mean([apply_holm(family)[0].any() for family in p])
    assert 0.03 < false < 0.065  # three standard errors about 4.9 %


@pytest.mark.parametrize(("mean", "std", "alpha"), [(0.01, 0.01, 0.05), (-0.01, 0.02, 0.003), (0.02, 0.001, 0.05)])
def test_seeds_needed_is_the_first_number_whose_interval_excludes_zero(mean, std, alpha):
    n = count_seeds_needed(mean, std, alpha)
    assert half_width(std, n, alpha) < abs(mean)
    assert n == 2 or half_width(std, n - 1, alpha) >= abs(mean)


def test_seeds_needed_gives_up_beyond_many_and_where_there_is_nothing_to_find():
    assert count_seeds_needed(0.001, 0.1, 0.05) == MAX_SEEDS + 1
    assert count_seeds_needed(0.0, 0.1, 0.05) is None
    assert count_seeds_needed(0.1, 0.0, 0.05) is None


def test_win_shares_count_the_draws_that_each_row_wins_and_ties_go_to_the_first():
    chance = np.random.default_rng(5)
    values = chance.integers(0, 3, size=(8, 3)) / 4
    values[6] = values[2]
    groups = [np.array([0, 1, 2, 6]), np.array([6, 2]), np.array([5])]
    found = win_shares(values, groups)
    means = np.hstack(list(resample(values)))
    for group, shares in zip(groups, found, strict=True):
        winners = [max(group, key=lambda i: (draw[i], -list(group).index(i))) for draw in means.T]
        assert shares.tolist() == pytest.approx([winners.count(i) / 1000 for i in group])
    assert (found[1].tolist(), found[2].tolist()) == ([1, 0], [1])
    assert win_shares(values, []) == []


def test_corrected_p_fall_at_the_level_of_the_family_where_holm_says_so():
    draw = np.random.default_rng(0)
    for _ in range(200):
        p = draw.uniform(0, 0.1, 7)
        p[draw.integers(7)] = np.nan
        fallen, _ = apply_holm(p)
        assert ((correct_p(p) <= 0.05) == fallen).all()
        assert (np.isnan(correct_p(p)) == np.isnan(p)).all()
