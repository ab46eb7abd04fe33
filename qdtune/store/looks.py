"""Tests of a family of comparisons at several looks, each with more seeds, at one level for all of them together.

A look is a number of seeds that was fixed before the first result. Its level is a share of `alpha` that rises from
look to look. The levels sum to `alpha`, so by the union bound the chance of any wrong verdict in the family is at
most `alpha`, however often more seeds were added in between. This supposes that Student's t test holds at each look.

At a look, Holm's procedure tests all comparisons of the family. Those decided earlier count as p = 0; those without
the seeds of this look count as p = 1. So further results never withdraw a verdict. Giving up only says that a
comparison gets no further seeds: if it has them all the same, it is tested.

With a margin there is a second verdict: the same within the margin, by two one-sided t tests. Both verdicts are then
tested at the level of the look divided by m (Bonferroni). A true difference cannot be zero and reach the margin, so
only one of the two verdicts on a comparison can be wrong. Hence the chance of any wrong verdict of either kind is at
most `alpha`, and the level need not be shared. Holm's procedure for each kind would hold `alpha` only for each kind
by itself. A significant difference comes first, whether or not it is within the margin: there is an effect, which
says more than that it is small.

Alphabet: m comparisons, L looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from qdtune.store.seed_tests import PairedTest, apply_holm, same_test, t_test

# How a comparison stands.
DECIDED, SAME, GIVEN_UP, LIVE = "decided", "same", "given up", "live"


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
        failed: (m,), whether the training of a further seed failed; a later launch may try it again.
    """

    differences: NDArray[np.float64]
    equal: NDArray[np.float64]
    lost: NDArray[np.bool_]
    failed: NDArray[np.bool_]


@dataclass(frozen=True)
class Walk:
    """How each comparison of a family stands after all looks for which there are seeds.

    Attributes:
        endings: `DECIDED`, `SAME`, `GIVEN_UP` or `LIVE`.
        looks: the look, from 0, at which it was decided, found the same or given up; of a live one the last for which
            it has seeds.
        levels: the level at which it was tested there; of a same one that of each one-sided test.
        last_level: the level at which an open one would be tested at the last look.
        tests: the tests at each look.
        pending: the comparisons that lack seeds, by index; empty once nothing is live but what failed.
        pending_look: the look for which they lack them.
    """

    endings: tuple[str, ...]
    looks: tuple[int, ...]
    levels: tuple[float, ...]
    last_level: float
    tests: tuple[PairedTest, ...]
    pending: tuple[int, ...] = ()
    pending_look: int = 0

    def interval_alpha(self, place: int) -> float:
        """1 less the confidence of the interval that shows how a comparison stands.

        It excludes zero exactly if the difference is significant, and it lies within the margin if it is `SAME`.
        """
        return self.levels[place] * (2 if self.endings[place] == SAME else 1)


@dataclass
class _Standing:
    """How the comparisons of a family stand while its looks are walked through; all are arrays (m,).

    Attributes:
        present: whether it has the seeds of the first look.
        decided, same, given_up: its ending.
        looks, levels: as in `Walk`.
    """

    present: NDArray[np.bool_]
    decided: NDArray[np.bool_] = field(init=False)
    same: NDArray[np.bool_] = field(init=False)
    given_up: NDArray[np.bool_] = field(init=False)
    looks: NDArray[np.int64] = field(init=False)
    levels: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        m = len(self.present)
        self.decided, self.same, self.given_up = (np.zeros(m, dtype=bool) for _ in range(3))
        self.looks, self.levels = np.zeros(m, dtype=np.int64), np.full(m, np.nan)

    @property
    def live(self) -> NDArray[np.bool_]:
        """Which comparisons get more seeds."""
        return self.present & ~self.decided & ~self.same & ~self.given_up

    def test(self, look: int, level: float, p: NDArray[np.float64], p_same: NDArray[np.float64] | None) -> None:
        """Gives the verdicts of a look.

        Args:
            look: from 0.
            level: of the look.
            p: that there is no difference; NaN for a comparison without the seeds of the look.
            p_same: that the difference reaches the margin; None if there is no margin.
        """
        tested = ~np.isnan(p) & ~self.decided & ~self.same
        if p_same is None:
            rejected, levels = apply_holm(np.where(self.decided, 0, np.where(tested, p, 1)), level)
            same = np.zeros_like(tested)
        else:
            levels = np.full(len(p), level / max(len(p), 1))  # Bonferroni
            rejected, same = p <= levels, p_same <= levels
        decided = tested & rejected
        same = tested & same & ~decided
        moved = (tested & ~self.given_up) | decided | same
        self.looks[moved], self.levels[moved] = look, levels[moved]
        self.decided |= decided
        self.same |= same

    def split_level(self, level: float, margin: float | None) -> float:
        """The level at which a comparison that is still open is tested, from that of the look."""
        return level / max(len(self.decided) - (int(self.decided.sum()) if margin is None else 0), 1)

    @property
    def endings(self) -> tuple[str, ...]:
        """The ending of each."""
        ends = np.full(len(self.present), LIVE, dtype=object)
        for name, which in ((GIVEN_UP, self.given_up), (SAME, self.same), (DECIDED, self.decided)):
            ends[which] = name
        return tuple(ends.tolist())


def walk_looks(tables: Sequence[LookTable], levels: Sequence[float], margin: float | None = None) -> Walk:
    """How the comparisons of one family stand.

    All live comparisons must have the seeds of a look, or have lost them, before any is given up there. One whose
    further seeds failed holds up no others, and stays live.

    Args:
        tables: at least one, with more seeds from look to look. A comparison that lacks seeds of the first look
            counts in the family and gets no further seeds. A table without columns tests nothing.
        levels: of the looks.
        margin: within which a difference is none, in the unit of the differences; None: no verdict `SAME`.
    """
    last = tables[-1].differences.shape[1]
    tests: list[PairedTest] = []
    pending: tuple[int, ...] = ()
    pending_look = 0
    for look, (table, level) in enumerate(zip(tables, levels, strict=True)):
        test = t_test(table.differences, table.equal)
        tests.append(test)
        complete = test.n == table.differences.shape[1]
        if look == 0:
            stand = _Standing(complete)
        p_same = None if margin is None else same_test(test, margin, table.equal)
        stand.test(look, level, np.where(complete, np.nan_to_num(test.p, nan=1.0), np.nan), p_same)
        live = stand.live & ~table.failed
        waiting = live & ~complete & ~table.lost
        if not pending and waiting.any():
            pending, pending_look = tuple(np.flatnonzero(waiting).tolist()), look
        if not pending:
            last_level = stand.split_level(levels[-1], margin)
            hopeless = _is_hopeless(test, table, last, last_level / 2)
            if margin is not None:
                hopeless &= _is_sameness_hopeless(test, table, last, last_level, margin)
            is_last = look == len(tables) - 1
            stand.given_up |= live & (~complete | hopeless | is_last)
    numbers = tuple(stand.looks.tolist()), tuple(stand.levels.tolist()), stand.split_level(levels[-1], margin)
    return Walk(stand.endings, *numbers, tuple(tests), pending, pending_look)


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


def _is_sameness_hopeless(
    test: PairedTest, table: LookTable, last: int, tail: float, margin: float
) -> NDArray[np.bool_]:
    """Where the mean, a standard error nearer to zero, would not be within the margin at the last look.

    Args:
        test, table, last: as for `_is_hopeless`.
        tail: the level of each one-sided test there.
        margin: as for `walk_looks`.
    """
    if last < 2:
        return np.zeros(len(test.n), dtype=bool)
    size = np.abs(test.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = test.std / math.sqrt(last)
        room = margin - np.maximum(size - error, 0)
        reached = np.where(room > table.equal, room / error, 0.0)
    return np.where(test.n > 1, reached < stdtrit(last - 1, 1 - tail), False)
