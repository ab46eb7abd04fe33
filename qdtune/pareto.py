"""The Pareto front of rows of costs: front, rank, hypervolume, and the probability of being on the front.

Lower is better in every objective; callers negate accuracy. A row with a NaN or an infinity is a failed measurement:
it has no rank, is never on the front and dominates nothing.

Alphabet: n points, m objectives, S seeds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

MEAN_DIGITS = 12  # of a mean; the sums of at most some hundred seeds differ in later ones
EXACT_POWER = 22  # the highest power of ten that is a float exactly
LEAST_SHARE = 1e-3  # from here to 1, a mean has `MEAN_DIGITS` after the point
DRAWS, DRAWS_AT_ONCE = 1000, 50  # of a bootstrap; how many draws are in memory at a time


def front(costs: ArrayLike) -> NDArray[np.bool_]:
    """A mask (n,) of the points that no other point dominates; equal points are all on the front.

    Args:
        costs: (n, m), lower is better. A dominates B if it is nowhere worse and somewhere better.

    Raises:
        ValueError: costs are not a table with at least one column.
    """
    return rank(costs) == 1


def rank(costs: ArrayLike) -> NDArray[np.int64]:
    """The non-dominated sorting rank (n,) of every point: 1 on the front, 2 on the front of the rest, and so on.

    Equal points share a rank; rows that are not finite have rank 0. Takes O(n log n) for up to two objectives, else
    O(n^2 m).

    Args:
        costs: (n, m), lower is better.

    Raises:
        ValueError: costs are not a table with at least one column.
    """
    table = _check_table(costs)
    ranks = np.zeros(len(table), dtype=np.int64)
    finite = np.isfinite(table).all(axis=1)
    if finite.any():
        # Sorted by row, so that a point can only be dominated by earlier ones; equal points are ranked once.
        points, back = np.unique(table[finite], axis=0, return_inverse=True)
        ranks[finite] = (_rank_pairs(points) if table.shape[1] <= 2 else _rank_any(points))[back.reshape(-1)]
    return ranks


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """The volume between a front and the reference point, exact; larger is better, 0 for no points.

    Takes O(n log n) for two and three objectives, and n times as long for each further one.

    Args:
        costs: (n, m) with m >= 2, lower is better. Points that are not finite, or not better than the reference in
            every objective, add nothing.
        reference: the worst corner (m,), finite.

    Raises:
        ValueError: costs are not (n, m) with m >= 2, or the reference is not m finite numbers.
    """
    table = _check_table(costs)
    corner = np.asarray(reference, dtype=float)
    if table.shape[1] < 2:
        raise ValueError("hypervolume needs two objectives or more, got 1: pass costs of shape (n, m), m >= 2")
    if corner.shape != table.shape[1:] or not np.isfinite(corner).all():
        raise ValueError(f"the reference must be {table.shape[1]} finite numbers, got {corner.tolist()}")
    inside = table[np.isfinite(table).all(axis=1) & (table < corner).all(axis=1)]
    points = np.unique(inside[front(inside)], axis=0)
    if table.shape[1] > 2:
        return _sweep(points.tolist(), corner.tolist())
    x, y = points.T  # x rises and y falls, so a slab reaches from x to the next x
    return float(np.sum(np.diff(x, append=corner[0]) * (corner[1] - y)))


def _sweep(points: list[list[float]], corner: list[float]) -> float:
    """The hypervolume of points inside the corner, of three objectives or more: a slab between two last costs.

    As HSO (While et al. 2006, "A faster algorithm for calculating hypervolume"), but the two objectives below the
    last slabs are kept as a staircase that grows point by point.
    """
    *rest, end = corner
    ordered = sorted(points, key=lambda point: point[-1])
    ends = [*(point[-1] for point in ordered), end][1:]
    stairs, volume = _Stairs(rest[0], rest[1]), 0.0
    for k, (point, above) in enumerate(zip(ordered, ends, strict=True)):
        if len(rest) == 2:
            stairs.add(point[0], point[1])
            volume += stairs.area * (above - point[-1])
        elif above > point[-1]:
            volume += _sweep([one[:-1] for one in ordered[: k + 1]], rest) * (above - point[-1])
    return volume


class _Stairs:
    """The front of points of two objectives, and the area between it and a corner; points come one by one."""

    def __init__(self, right: float, top: float) -> None:
        self.right, self.top, self.area = right, top, 0.0
        self.x: list[float] = []  # rises
        self.y: list[float] = []  # falls

    def add(self, x: float, y: float) -> None:
        """Takes in a point inside the corner, and drops those that it dominates."""
        first = bisect_right(self.x, x)
        if first and self.y[first - 1] <= y:
            return
        last, left, ceiling = first, x, self.y[first - 1] if first else self.top
        while last < len(self.x) and self.y[last] >= y:
            self.area += (self.x[last] - left) * (ceiling - y)
            left, ceiling, last = self.x[last], self.y[last], last + 1
        self.area += ((self.x[last] if last < len(self.x) else self.right) - left) * (ceiling - y)
        self.x[first:last], self.y[first:last] = [x], [y]


def front_probability(costs: ArrayLike, sizes: ArrayLike) -> NDArray[np.float64]:
    """The share (n,) of bootstrap draws over seeds in which each point is on the front of mean cost against size.

    The front of every draw is that of `front`. The share of a point with fewer than two seeds is NaN. A point with
    one seed still takes part; a point without seeds, or of a size that is not finite, does not. With several sizes
    it takes O(k^2) for each draw, k being the different sizes that are on the front in some draw.

    Args:
        costs: (n, S), lower is better, a column per seed; NaN if a point lacks the seed.
        sizes: (n,), or (n, m) for a front over m of them; lower is better; the same in every draw.

    Raises:
        ValueError: costs are not a table, or their number differs from the number of sizes.
    """
    table, sizes = _check_table(costs), np.asarray(sizes, dtype=float)
    if sizes.shape[:1] != table.shape[:1] or sizes.ndim not in (1, 2):
        raise ValueError(f"sizes must have shape ({len(table)},), got {sizes.shape}: pass one per row of costs")
    sizes = sizes.reshape(len(table), -1 if len(table) else 1)
    seeds = np.isfinite(table).sum(axis=1)
    is_single = sizes.shape[1] == 1
    there = (seeds > 0) & np.isfinite(sizes).all(axis=1)
    order = np.lexsort(sizes.T[::-1])  # by the first size, then by the next
    order = order[there[order]]
    share = np.full(len(table), np.nan)
    if len(order):
        count = _count_on_front if is_single else _count_on_fronts
        kept = order if is_single else order[_may_be_on_front(table[order], sizes[order])]
        share[order] = 0.0
        share[kept] = sum(count(means, sizes[kept]) for means in resample(table[kept])) / DRAWS
    return np.where(seeds > 1, share, np.nan)


def resample(values: ArrayLike) -> Iterator[NDArray[np.float64]]:
    """The means of each row in `DRAWS` bootstrap draws over its seeds (Efron 1979), (n, DRAWS_AT_ONCE) at a time.

    Rows with the same seeds use the same draws, because a seed gives the same first weights and the same batches to
    every row; other rows use independent draws. The draws depend only on the columns of the seeds. Means are those of
    `round_means`.

    Args:
        values: (n, S), a column per seed, NaN if a row lacks the seed; every row has at least one seed.
    """
    table = _check_table(values)
    patterns, group = np.unique(np.isfinite(table), axis=0, return_inverse=True)
    columns = [np.flatnonzero(pattern) for pattern in patterns]
    # The bits of a generator are stable across versions of NumPy; its draws of integers are not.
    chance = [np.random.Generator(np.random.PCG64(seeds)) for seeds in columns]
    members = [np.flatnonzero(group.reshape(-1) == k) for k in range(len(patterns))]
    for _ in range(DRAWS // DRAWS_AT_ONCE):
        means = np.empty((len(table), DRAWS_AT_ONCE))
        for seeds, generator, rows in zip(columns, chance, members, strict=True):
            drawn = seeds[(generator.random((len(seeds), DRAWS_AT_ONCE)) * len(seeds)).astype(int)]
            counts = (drawn[..., None] == seeds).sum(axis=0)  # (DRAWS_AT_ONCE, seeds): how often each was drawn
            # One seed after another, because a matrix product rounds differently on different machines.
            means[rows] = sum(table[rows, s, None] * counts[:, j] for j, s in enumerate(seeds)) / len(seeds)
        yield round_means(means)


def round_mean(mean: float) -> float:
    """The mean with 12 digits, so that equal means tie although their sums round differently.

    From 0.001 to 1 they are digits after the point. Other means keep 12 significant digits, because the errors of a
    network may be of any size: targets in metres may have squared errors of 1e-14.
    """
    size = abs(mean)
    if LEAST_SHARE <= size <= 1 or not size or not math.isfinite(size):
        return round(mean, MEAN_DIGITS)
    return round(mean, MEAN_DIGITS - 1 - math.floor(math.log10(size)))


def round_means(means: NDArray[np.float64], like: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """An array of means as `round_mean` rounds them; or other numbers with as many digits after the point.

    Args:
        means: of any shape; NaN stays.
        like: the means that decide on the digits, such as those to which standard deviations belong.
    """
    size = np.abs(means if like is None else like)
    found: NDArray[np.float64] = means.round(MEAN_DIGITS)
    other = ((size < LEAST_SHARE) | (size > 1)) & (size > 0) & np.isfinite(size)
    if other.any():
        numbers, places = means[other], MEAN_DIGITS - 1 - np.floor(np.log10(size[other])).astype(int)
        power = 10.0 ** np.clip(places, 0, EXACT_POWER)
        rounded = np.rint(numbers * power) / power
        for k in np.flatnonzero((places < 0) | (places > EXACT_POWER)):  # ten to their power is not exact
            rounded[k] = round(float(numbers[k]), int(places[k]))
        found[other] = rounded
    return found


def _count_on_front(means: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of draws (columns of `means`) in which each point is on the front; points are sorted by size."""
    new = np.diff(sizes[:, 0], prepend=-np.inf) > 0
    group = np.cumsum(new) - 1
    best = np.minimum.reduceat(means, np.flatnonzero(new), axis=0)  # of each size
    smaller = np.minimum.accumulate(np.vstack([np.full((1, means.shape[1]), np.inf), best[:-1]]), axis=0)
    wins = np.where(best < smaller, best, np.nan)  # the mean that a point of this size must have
    on: NDArray[np.int64] = (means == wins[group]).sum(axis=1)
    return on


def _count_on_fronts(means: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """As `_count_on_front`, for several sizes (n, m), sorted by row."""
    kinds, group = np.unique(sizes, axis=0, return_inverse=True)
    group = group.reshape(-1)
    best = np.minimum.reduceat(means, np.searchsorted(group, np.arange(len(kinds))), axis=0)  # of each kind of sizes
    wins = np.empty_like(best)
    for k, kind in enumerate(kinds):  # only earlier ones can be as small in every size
        smaller = best[:k][(kinds[:k] <= kind).all(axis=1)].min(axis=0, initial=np.inf)
        wins[k] = np.where(best[k] < smaller, best[k], np.nan)
    on: NDArray[np.int64] = (means == wins[group]).sum(axis=1)
    return on


def _may_be_on_front(costs: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """A mask (n,) of the points that are on the front in some draw, as far as their best and worst seeds tell.

    A mean lies between the seeds that it is of. So a point whose best seed is worse than the worst seed of another
    one, of no larger sizes, is dominated in every draw; by that one or by what dominates it.

    Args:
        costs: (n, S), NaN if a point lacks the seed; every row has at least one.
        sizes: (n, m), sorted by row.
    """
    least, most = np.nanmin(costs, axis=1), np.nanmax(costs, axis=1)
    # Means are rounded, so a bound must be clear.
    clear = most + 1e-9 * np.abs(most)
    return np.array(
        [not ((clear < least[i]) & (sizes <= sizes[i]).all(axis=1)).any() for i in range(len(costs))], dtype=bool
    )


def _check_table(costs: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(costs, dtype=float)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"costs must have shape (n, m) with m >= 1, got {table.shape}: pass one row per point")
    return table


def _rank_pairs(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of distinct, sorted points: in this order the last second cost of a front decides who joins it."""
    ranks = np.empty(len(points), dtype=np.int64)
    # The last second cost of each front; it rises, so that the first fitting front is found by bisection.
    lowest: list[float] = []
    for i, cost in enumerate(points[:, -1].tolist()):
        k = bisect_right(lowest, cost)
        lowest[k : k + 1] = [cost]
        ranks[i] = k + 1
    return ranks


def _rank_any(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of distinct, sorted points: the highest rank of the earlier points that dominate, plus one."""
    ranks = np.zeros(len(points), dtype=np.int64)
    for i, point in enumerate(points):
        dominating = (points[:i] <= point).all(axis=1)
        ranks[i] = 1 + ranks[:i][dominating].max(initial=0)
    return ranks
