import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qdtune.pareto import front, hypervolume, rank

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


@settings(max_examples=400, deadline=None)
@given(TABLES)
def test_rank_equals_brute_force(costs):
    assert rank(costs).tolist() == brute_rank(costs)


@settings(max_examples=200, deadline=None)
@given(TABLES, st.randoms(use_true_random=False))
def test_rank_follows_its_rows_when_they_are_shuffled(costs, random):
    order = list(range(len(costs)))
    random.shuffle(order)
    assert rank(costs[order]).tolist() == rank(costs)[order].tolist()


@pytest.mark.parametrize("m", [2, 3])
def test_rank_equals_brute_force_on_many_distinct_points(m):
    costs = np.random.default_rng(m).normal(size=(150, m))
    assert rank(costs).tolist() == brute_rank(costs)


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=300, deadline=None)
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
    with pytest.raises(ValueError, match="needs two objectives, got 3"):
        hypervolume([[1, 2, 3]], [4, 4])
    with pytest.raises(ValueError, match="reference must be two finite numbers"):
        hypervolume([[1, 2]], [4, np.nan])
