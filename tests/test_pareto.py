import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qdtune.pareto import front, front_probability, hypervolume, rank, resample, round_mean, round_means

# Few distinct values, so that ties, duplicates, NaN and infinities meet all the time.
VALUES = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 3.0, np.nan, np.inf, -np.inf])
SHAPES = st.tuples(st.integers(0, 14), st.integers(1, 3))
TABLES = SHAPES.flatmap(lambda shape: arrays(float, shape, elements=VALUES))
PAIRS = st.integers(0, 14).flatmap(lambda n: arrays(float, (n, 2), elements=VALUES))


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a <= b).all() and (a < b).any())


def brute_rank(costs: np.ndarray) -> list[int]:
    """Peels front after front, comparing every pair."""
    ranks = [0] * len(costs)
    left = {i for i in range(len(costs)) if np.isfinite(costs[i]).all()}
    level = 0
    while left:
        level += 1
        peeled = {i for i in left if not any(dominates(costs[j], costs[i]) for j in left)}
        for i in peeled:
            ranks[i] = level
        left -= peeled
    return ranks


@settings(max_examples=100, deadline=None)
@given(TABLES)
def test_rank_equals_brute_force(costs):
    assert rank(costs).tolist() == brute_rank(costs)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.randoms(use_true_random=False))
def test_rank_follows_its_rows_when_they_are_shuffled(costs, random):
    order = list(range(len(costs)))
    random.shuffle(order)
    assert rank(costs[order]).tolist() == rank(costs)[order].tolist()


@pytest.mark.parametrize("m", [2, 3])
def test_rank_equals_brute_force_on_many_distinct_points(m):
    costs = np.random.default_rng(m).normal(size=(150, m))
    assert rank(costs).tolist() == brute_rank(costs)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_front_is_what_nothing_finite_dominates(costs):
    finite = [row for row in costs if np.isfinite(row).all()]
    expected = [bool(np.isfinite(row).all()) and not any(dominates(q, row) for q in finite) for row in costs]
    assert front(costs).tolist() == expected


def test_front_keeps_duplicates_together_and_drops_the_merely_equal_in_one_cost():
    costs = [[2, 1], [1, 2], [2, 1], [1, 3], [2, 2]]
    assert front(costs).tolist() == [True, True, True, False, False]


def test_rank_of_nothing_is_empty():
    assert rank(np.empty((0, 2))).tolist() == []
    assert rank([[np.nan, 1.0]]).tolist() == [0]


def test_rank_of_400_000_points_in_one_chain_needs_no_pairwise_comparison():
    """Pairwise, this would be 80,000,000,000 comparisons: the suite's time limit is the judge."""
    order = np.random.default_rng(0).permutation(400_000)
    assert (rank(np.stack([order, order], axis=1)) == order + 1).all()


@pytest.mark.parametrize("costs", [[1.0, 2.0], np.empty((3, 0)), np.empty((1, 2, 3))])
def test_rank_refuses_what_is_no_table(costs):
    with pytest.raises(ValueError, match=r"costs must have shape \(n, m\)"):
        rank(costs)


CORNERS = st.sampled_from([0.0, 1.0, 1.0, 2.0, 3.0, np.nan])


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.sampled_from([(2.0, 2.0), (3.0, 0.5), (-1.0, 4.0), (4.0, 4.0)]))
def test_hypervolume_equals_the_counted_cells(costs, reference):
    """Values are multiples of one half from -1 up: cells of side one half are covered whole or not at all."""
    finite = costs[np.isfinite(costs).all(axis=1)]
    centres = np.arange(-0.75, 4, 0.5)
    covered = sum(
        any(p[0] < x and p[1] < y for p in finite)
        for x in centres[centres < reference[0]]
        for y in centres[centres < reference[1]]
    )
    assert hypervolume(costs, reference) == pytest.approx(covered / 4)


def test_hypervolume_ignores_points_on_or_beyond_the_reference():
    assert hypervolume([[1, 1]], [3, 2]) == 2
    assert hypervolume([[1, 1], [0, 2], [3, 0], [-np.inf, 0], [9, 9]], [3, 2]) == 2
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0


def test_hypervolume_refuses_other_shapes():
    with pytest.raises(ValueError, match="needs two objectives or more, got 1"):
        hypervolume([[1]], [4])
    with pytest.raises(ValueError, match="reference must be 3 finite numbers"):
        hypervolume([[1, 2, 3]], [4, 4])
    with pytest.raises(ValueError, match="reference must be 2 finite numbers"):
        hypervolume([[1, 2]], [4, np.nan])


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 4).flatmap(lambda m: arrays(float, st.tuples(st.integers(0, 9), st.just(m)), elements=CORNERS)))
def test_hypervolume_of_three_and_four_objectives_equals_the_counted_cells(costs):
    """Whole numbers from 0 on: cells of side one between 0 and the reference are covered whole or not at all."""
    reference = np.array([3.0, 4.0, 3.0, 2.0])[: costs.shape[1]]
    finite = costs[np.isfinite(costs).all(axis=1)]
    cells = np.stack(np.meshgrid(*(np.arange(end) for end in reference), indexing="ij"), axis=-1)
    covered = sum((p <= cells).all(axis=-1).astype(int) for p in finite) if len(finite) else np.zeros(1)
    assert hypervolume(costs, reference) == (covered > 0).sum()
    order = np.random.default_rng(len(costs)).permutation(len(costs))
    assert hypervolume(costs[order], reference) == (covered > 0).sum()


def test_hypervolume_of_a_large_front_of_four_objectives_takes_no_time():
    """500 points, none of which dominates another: the suite's time limit is the judge."""
    points = np.random.default_rng(0).dirichlet(np.ones(4), 500)
    assert 0.9 < hypervolume(points, np.ones(4)) < 1


# --- how sure a front is

COLUMNS = st.tuples(st.integers(1, 9), st.integers(1, 4))
ACCURACIES = st.sampled_from([0.0, 0.25, 0.5, 0.75, np.nan])


@settings(max_examples=40, deadline=None)
@given(COLUMNS.flatmap(lambda shape: arrays(float, shape, elements=ACCURACIES)), st.randoms(use_true_random=False))
def test_front_probability_is_the_share_of_draws_whose_front_holds_the_point(costs, random):
    check_front_probability(costs, np.array([random.choice([1.0, 2.0, 3.0, np.inf]) for _ in costs]))


@settings(max_examples=30, deadline=None)
@given(
    COLUMNS.flatmap(lambda shape: arrays(float, shape, elements=ACCURACIES)),
    st.integers(2, 3),
    st.randoms(use_true_random=False),
)
def test_front_probability_over_several_sizes_is_that_share_too(costs, m, random):
    choices = [1.0, 2.0, 3.0, np.nan, 1.0]
    check_front_probability(costs, np.array([[random.choice(choices) for _ in range(m)] for _ in costs]))


def check_front_probability(costs, sizes):
    """It is the share of draws whose front holds the point, of sizes (N,) or (N, M)."""
    seeds = np.isfinite(costs).sum(axis=1)
    there = np.flatnonzero((seeds > 0) & np.isfinite(sizes.reshape(len(costs), -1)).all(axis=1))
    expected = np.full(len(costs), np.nan)
    if len(there):
        means = np.hstack(list(resample(costs[there])))
        expected[there] = np.mean([front(np.column_stack([draw, sizes[there]])) for draw in means.T], axis=0)
    expected[seeds < 2] = np.nan
    np.testing.assert_allclose(front_probability(costs, sizes), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(60,), (60, 2)])
def test_front_probability_follows_its_rows_when_they_are_shuffled(shape):
    chance = np.random.default_rng(0)
    costs, sizes = chance.normal(size=(60, 4)), chance.integers(1, 20, shape)
    costs[chance.random(costs.shape) < 0.2] = np.nan
    order = chance.permutation(60)
    found = front_probability(costs, sizes)
    assert ((found > 0) & (found < 1)).sum() > 5
    np.testing.assert_array_equal(front_probability(costs[order], sizes[order]), found[order])


def test_resampled_draws_the_same_seeds_for_rows_that_have_the_same():
    values = np.array([[0.0, 1.0, 4.0], [2.0, 3.0, 6.0], [np.nan, 0.0, 3.0], [5.0, np.nan, np.nan]])
    first, second, third, alone = np.hstack(list(resample(values)))
    np.testing.assert_allclose(second - first, 2, atol=1e-9)
    assert len(np.unique(first)) == 10  # the distinct multisets of three seeds
    assert sorted(np.unique(third)) == [0, 1.5, 3]
    assert abs(np.corrcoef(first, third)[0, 1]) < 0.1
    assert (alone == 5).all()


def test_resampled_means_that_are_equal_tie_whatever_the_rounding_of_their_sums():
    means = np.hstack(list(resample([[0.93, 0.94, 0.95]])))
    assert len(np.unique(means)) == 7  # from 2.79 / 3 to 2.85 / 3; unrounded they are eight


def test_resampled_gives_numbers_that_are_the_same_everywhere():
    found = (3 * next(resample([[1.0, 2.0, 4.0]]))[0, :8]).round(9)
    assert found.tolist() == [6, 5, 12, 4, 4, 7, 5, 6]


def test_resampled_means_spread_as_those_of_a_bootstrap_do():
    values = np.random.default_rng(1).normal(size=8)
    means = np.hstack(list(resample(values[None])))[0]
    assert means.shape == (1000,)
    assert means.mean() == pytest.approx(values.mean(), abs=0.05)
    assert means.std() == pytest.approx(values.std() / np.sqrt(8), rel=0.1)


def test_front_probability_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"sizes must have shape \(2,\), got \(3,\)"):
        front_probability([[1.0, 2.0], [3.0, 4.0]], [1, 2, 3])
    assert front_probability(np.empty((0, 3)), []).tolist() == []


def test_a_mean_keeps_its_digits_however_small_it_is():
    found = {3.7e-14, 1.8e-14, 3.5e-15, 1.5e-15}
    assert {round_mean(x) for x in found} == set(round_means(np.array(list(found))).tolist()) == found
    assert round_mean(2 / 3) == 0.666666666667  # a share has 12 digits after the point
    assert [round_mean(x) for x in (123456.7891234567, -1.5e300, 0.0)] == [123456.789123, -1.5e300, 0.0]
    assert np.isnan(round_mean(np.nan))
    assert round_mean(-np.inf) == -np.inf


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 1), min_size=2, max_size=9), st.integers(-40, 20), st.randoms())
def test_equal_means_tie_at_any_size(numbers, power, random):
    shuffled = random.sample(numbers, len(numbers))
    first, second = (sum(x * 10.0**power for x in part) / len(numbers) for part in (numbers, shuffled))
    assert round_mean(first) == pytest.approx(first, rel=1e-8)
    assert round_mean(second) == pytest.approx(round_mean(first), rel=3e-12, abs=1e-12 if first > 1e-3 else 0)
    assert round_means(np.array([first]))[0] == pytest.approx(round_mean(first), rel=1e-8)


def test_deviations_have_the_digits_of_their_means():
    means, noise = np.array([3e-14, 0.5, 2e6]), np.array([2e-29, 3e-17, 1e-10])
    assert round_means(noise, like=means).tolist() == [0, 0, 0]
    assert round_means(means / 7, like=means).tolist() == pytest.approx((means / 7).tolist(), rel=1e-10)


def test_small_costs_have_a_front_in_every_draw():
    costs = 1e-14 * np.array([[3.7, 3.8], [1.8, 1.9]])
    assert front_probability(costs, [2, 1]).tolist() == [0, 1]
