"""Which points no other point beats: front, rank and hypervolume of rows of costs.

Every objective is "lower is better"; callers negate accuracy at the door. A row with a NaN or an infinity is a
failed measurement: it takes no rank, is never on the front and beats nothing.

Alphabet: n points, m objectives.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import ArrayLike, NDArray


def front(costs: ArrayLike) -> NDArray[np.bool_]:
    """A mask (n,) of the points that no other point dominates; equal points are on the front together.

    Args:
        costs: (n, m), lower is better. A dominates B: nowhere worse and somewhere better.

    Raises:
        ValueError: costs are not a table of at least one column.
    """
    return rank(costs) == 1


def rank(costs: ArrayLike) -> NDArray[np.int64]:
    """The non-dominated sorting rank (n,) of every point: 1 on the front, 2 once the front is gone, ...

    Equal points share a rank; rows that are not finite have rank 0. O(n log n) up to two objectives, else O(n^2 m).

    Args:
        costs: (n, m), lower is better.

    Raises:
        ValueError: costs are not a table of at least one column.
    """
    table = _table(costs)
    ranks = np.zeros(len(table), dtype=np.int64)
    finite = np.isfinite(table).all(axis=1)
    if finite.any():
        # Sorted row by row, so that only an earlier point can dominate a later one; equal points are ranked once.
        points, back = np.unique(table[finite], axis=0, return_inverse=True)
        ranks[finite] = (_rank_pairs(points) if table.shape[1] <= 2 else _rank_any(points))[back.reshape(-1)]
    return ranks


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """The area between a two-objective front and the reference point, exact; larger is better, 0 for no points.

    Args:
        costs: (n, 2), lower is better. Points that are not better than the reference in both objectives, or are
            not finite, add nothing.
        reference: the worst corner (2,), finite.

    Raises:
        ValueError: costs are not (n, 2), or the reference is not two finite numbers.
    """
    table = _table(costs)
    corner = np.asarray(reference, dtype=float)
    if table.shape[1] != 2:
        raise ValueError(f"hypervolume needs two objectives, got {table.shape[1]}: pass costs of shape (n, 2)")
    if corner.shape != (2,) or not np.isfinite(corner).all():
        raise ValueError(f"the reference must be two finite numbers, got {corner.tolist()}")
    inside = table[np.isfinite(table).all(axis=1) & (table < corner).all(axis=1)]
    x, y = np.unique(inside[front(inside)], axis=0).T  # x rises and y falls: slabs reach from x to the next x
    return float(np.sum(np.diff(x, append=corner[0]) * (corner[1] - y)))


def _table(costs: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(costs, dtype=float)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"costs must have shape (n, m) with m >= 1, got {table.shape}: pass one row per point")
    return table


def _rank_pairs(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of distinct, sorted points: in that order a front is summed up by the second cost it reached last."""
    ranks = np.empty(len(points), dtype=np.int64)
    lowest: list[float] = []  # of each front; rises from front to front, so the first one that fits is bisected
    for i, cost in enumerate(points[:, -1].tolist()):
        k = bisect_right(lowest, cost)
        lowest[k : k + 1] = [cost]
        ranks[i] = k + 1
    return ranks


def _rank_any(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ranks of distinct, sorted points: one more than the highest rank among the earlier points that dominate."""
    ranks = np.zeros(len(points), dtype=np.int64)
    for i, point in enumerate(points):
        dominating = (points[:i] <= point).all(axis=1)
        ranks[i] = 1 + ranks[:i][dominating].max(initial=0)
    return ranks
