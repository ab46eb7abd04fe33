"""Tests of a family of comparisons at several looks, each with more seeds, at one level for all of them together.

A look is a number of seeds that was fixed before the first result. Its level is a share of `alpha` that rises from
look to look. The levels sum to `alpha`, so by the union bound the chance of any wrong verdict in the family is at
most `alpha`, however often more seeds were added in between. This supposes that Student's t test holds at each look.

At a look, Holm's procedure tests all comparisons of the family. Those decided earlier count as p = 0; those without
the seeds of this look count as p = 1. So further results never withdraw a verdict. Giving up only says that a
comparison gets no further seeds: if it has them all the same, it is tested.

Alphabet: m comparisons, L looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from qdtune.store.seed_tests import PairedTest, apply_holm, t_test

DECIDED, GIVEN_UP, LIVE = "decided", "given up", "live"  # how a comparison stands


def rising_levels(alpha: float, count: int) -> tuple[float, ...]:
    """The levels of `count` looks: the l-th is l shares of `alpha`, and they sum to it; 0.005 to 0.02 for four."""
    shares = count * (count + 1) // 2
    return tuple(alpha * look / shares for look in range(1, count + 1))


@dataclass(frozen=True)
class LookTable:
    """The differences of a family with the seeds of one look.

    Attributes:
        differences: (m, n), NaN for a missing seed.
        equal: (m,), the largest difference that is none, see `seed_tests.equal_within`.
        lost: (m,), whether its missing seeds will never come, such as after a divergence.
    """

    differences: NDArray[np.float64]
    equal: NDArray[np.float64]
    lost: NDArray[np.bool_]


@dataclass(frozen=True)
class Walk:
    """How each comparison of a family stands after all looks for which there are seeds.

    Attributes:
        endings: `DECIDED`, `GIVEN_UP` or `LIVE`.
        looks: the look, from 0, at which it was decided or given up; of a live one the last for which it has seeds.
        levels: the level at which Holm's procedure tested it there.
        tests: the tests at each look.
        pending: the comparisons that lack seeds, by index; empty once nothing is live.
        pending_look: the look for which they lack them.
    """

    endings: tuple[str, ...]
    looks: tuple[int, ...]
    levels: tuple[float, ...]
    tests: tuple[PairedTest, ...]
    pending: tuple[int, ...] = ()
    pending_look: int = 0


def walk_looks(tables: Sequence[LookTable], levels: Sequence[float]) -> Walk:
    """How the comparisons of one family stand.

    All live comparisons must have the seeds of a look, or have lost them, before any is given up there.

    Args:
        tables: at least one, with more seeds from look to look. A comparison that lacks seeds of the first look
            counts in the family and gets no further seeds. A table without columns tests nothing.
        levels: of the looks.
    """
    m, last = len(tables[0].differences), tables[-1].differences.shape[1]
    decided, given_up = np.zeros(m, dtype=bool), np.zeros(m, dtype=bool)
    looks, tested_at = np.zeros(m, dtype=np.int64), np.full(m, np.nan)
    tests: list[PairedTest] = []
    pending: tuple[int, ...] = ()
    pending_look = 0
    for look, (table, level) in enumerate(zip(tables, levels, strict=True)):
        test = t_test(table.differences, table.equal)
        tests.append(test)
        complete = test.n == table.differences.shape[1]
        if look == 0:
            present = complete
        tested = complete & ~decided
        rejected, holm = apply_holm(np.where(decided, 0, np.where(tested & ~np.isnan(test.p), test.p, 1)), level)
        moved = tested & ~given_up
        looks[moved], tested_at[moved] = look, holm[moved]
        now = rejected & tested
        looks[now], tested_at[now] = look, holm[now]
        decided |= now
        live = present & ~decided & ~given_up
        waiting = live & ~complete & ~table.lost
        if not pending and waiting.any():
            pending, pending_look = tuple(np.flatnonzero(waiting).tolist()), look
        if not pending:
            hopeless = _is_hopeless(test, table, last, levels[-1] / (2 * max(m - decided.sum(), 1)))
            is_last = look == len(tables) - 1
            given_up |= live & (~complete | hopeless | is_last)
    endings = [DECIDED if d else GIVEN_UP if g else LIVE for d, g in zip(decided, given_up, strict=True)]
    return Walk(tuple(endings), tuple(looks.tolist()), tuple(tested_at.tolist()), tuple(tests), pending, pending_look)


def _is_hopeless(test: PairedTest, table: LookTable, last: int, tail: float) -> NDArray[np.bool_]:
    """Where the mean, a standard error larger, would not be significant with the seeds of the last look.

    Args:
        test, table: of a look.
        last: the seeds of the last look.
        tail: one side of the level there.
    """
    if last < 2:
        return np.zeros(len(test.n), dtype=bool)
    size = np.abs(test.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        reached = np.where(size > table.equal, size * math.sqrt(last) / test.std, 0.0)
    return np.where(test.n > 1, reached + 1 < stdtrit(last - 1, 1 - tail), False)
