"""Tests of paired differences over seeds: Student's t, equivalence, Holm's correction, seeds needed, shares of wins.

The seed is the unit of replication: it gives every configuration the same first weights and the same batches, so the
tests compare differences within a seed.

Alphabet: m comparisons, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from qdtune.pareto import DRAWS, resample
from qdtune.spec.tasks import Metric

FAMILY_ALPHA = 0.05  # the chance of any wrong verdict in a family of comparisons
# Accuracies no further apart are equal, because float32 holds a fraction of a count to 7 digits.
EQUAL_WITHIN = 1e-6  # see `equal_within`
MAX_SEEDS = 100  # beyond it the number of seeds needed is not computed


class PairedTest(NamedTuple):
    """Statistics (m,) of paired differences: seeds, mean, sample deviation, two-sided p; NaN if unknown."""

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    p: NDArray[np.float64]


def equal_within(metric: Metric, *values: ArrayLike) -> NDArray[np.float64]:
    """The largest difference at which values of a metric are equal, for each row of them.

    Metrics of at most 1 are computed from numbers around 1. Others have the unit of the data, so that their own size
    decides.

    Args:
        metric: of the values.
        values: (S,) or (m, S), NaN for a missing seed.
    """
    least = 1.0 if metric.bounds[1] == 1 else 0.0
    scale = np.float64(least)
    for table in values:
        known = np.nan_to_num(np.abs(np.asarray(table, dtype=float)), nan=0.0, posinf=0.0)
        scale = np.maximum(scale, known.max(axis=-1, initial=0.0))
    return np.asarray(EQUAL_WITHIN * scale)


def t_test(differences: ArrayLike, equal: ArrayLike = EQUAL_WITHIN) -> PairedTest:
    """Student's t test of each row against zero; p is NaN below two seeds.

    If all differences of a row are equal, their spread is unknown rather than zero, because accuracies are counts.
    The t test then does not apply: p is 1 if they are zero, else that of a sign test, 2^(1 - n) (Fisher 1935).

    Args:
        differences: (m, S), NaN for a missing seed.
        equal: the largest difference that is none, of all rows or of each, see `equal_within`.
    """
    table = np.asarray(differences, dtype=float)
    there = np.isfinite(table)
    n = there.sum(axis=1)
    known = np.maximum(n, 1)
    mean = np.where(n > 0, np.where(there, table, 0).sum(axis=1) / known, np.nan)
    squares = np.where(there, table - mean[:, None], 0) ** 2
    spread = np.where(there, table, -np.inf).max(axis=1, initial=-np.inf)
    spread = spread - np.where(there, table, np.inf).min(axis=1, initial=np.inf)
    std = np.where(n > 1, np.where(spread > equal, np.sqrt(squares.sum(axis=1) / np.maximum(n - 1, 1)), 0), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(np.maximum(n - 1, 1), -np.abs(mean) * np.sqrt(n) / std)
    p = np.where(spread > equal, p, np.where(np.abs(mean) > equal, 2.0 ** (1 - n), 1.0))
    return PairedTest(n, mean, std, np.where(n > 1, p, np.nan))


def same_test(found: PairedTest, margin: float, equal: ArrayLike = EQUAL_WITHIN) -> NDArray[np.float64]:
    """The p values (m,) of two one-sided t tests that each mean lies within a margin; NaN below two seeds.

    The null hypothesis is a mean of the margin or more, in either direction (Schuirmann 1987). The larger p value
    counts. It is at most `a` exactly if the t interval of confidence 1 - 2a lies within the margin.

    If all differences of a row are equal, the t test does not apply, as in `t_test`: two sign tests have the larger
    p 2^(-n).

    Args:
        found: the test of each difference against zero.
        margin: above 0, in the unit of the differences.
        equal: the largest difference that is none, of all rows or of each, see `equal_within`.
    """
    room = margin - np.abs(found.mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stdtr(np.maximum(found.n - 1, 1), -room * np.sqrt(found.n) / found.std)
    p = np.where(found.std > 0, p, np.where(room > np.asarray(equal), 2.0 ** (-found.n), 1.0))
    return np.where(found.n > 1, p, np.nan)


def apply_holm(p: ArrayLike, alpha: float = FAMILY_ALPHA) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which hypotheses of one family are rejected, and the level at which each was tested (Holm 1979).

    The smallest p is tested at alpha / m, the next at alpha / (m - 1), and so on. The first that is not rejected ends
    this: all after it are not rejected either, at its level. A NaN stands for no test: it does not count in m, is not
    rejected, and its level is NaN.

    Args:
        p: (m,), the p values.
        alpha: the level of the family.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")  # NaN last
    m = np.count_nonzero(np.isfinite(values))
    levels = alpha / np.arange(m, 0, -1)
    stands = values[order[:m]] > levels
    first = int(stands.argmax()) if stands.any() else m
    rejected, at = np.zeros(len(values), dtype=bool), np.full(len(values), np.nan)
    rejected[order[:first]] = True
    at[order[:m]] = levels[np.minimum(np.arange(m), first)]
    return rejected, at


def correct_p(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The p values of one family after Holm's correction: the smallest family level that rejects each.

    Args:
        p: (m,), the p values; a NaN stands for no test, does not count and stays NaN.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")  # NaN last
    m = np.count_nonzero(np.isfinite(values))
    found = np.full(len(values), np.nan)
    found[order[:m]] = np.maximum.accumulate(values[order[:m]] * np.arange(m, 0, -1)).clip(max=1)
    return found


def half_width(std: float, n: int, alpha: float) -> float:
    """Half the width of Student's t interval of a mean of `n` >= 2 values, at the confidence 1 - alpha."""
    return float(stdtrit(n - 1, 1 - alpha / 2)) * std / math.sqrt(n)


def count_seeds_needed(mean: float, std: float, alpha: float, equal: float = EQUAL_WITHIN) -> int | None:
    """The fewest seeds whose interval excludes zero if mean and spread stay the same.

    `MAX_SEEDS` + 1 stands for more than `MAX_SEEDS`. None if more seeds would not help, because there is no effect or
    no spread.

    Args:
        mean, std: of the differences.
        alpha: the level of the test.
        equal: the largest difference that is none, see `equal_within`.
    """
    if std == 0 or abs(mean) <= equal:
        return None
    return next((n for n in range(2, MAX_SEEDS + 1) if half_width(std, n, alpha) < abs(mean)), MAX_SEEDS + 1)


def win_shares(values: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """The share of bootstrap draws over seeds in which each row has the highest mean of its group, for each group.

    The first of equal means wins. The shares of a group sum to one.

    Args:
        values: (n, S), NaN if a row lacks the seed; every row has at least one seed.
        groups: row numbers; no group is empty.
    """
    wins = [np.zeros(len(group)) for group in groups]
    for means in resample(values) if groups else ():
        by_draw = np.ascontiguousarray(means.T)
        for group, count in zip(groups, wins, strict=True):
            count += np.bincount(by_draw[:, group].argmax(axis=1), minlength=len(group))
    return [count / DRAWS for count in wins]
