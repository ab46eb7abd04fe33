"""Paired differences over seeds: Student's t, Holm's correction, how many seeds would decide, who wins how often.

The seed is the unit of replication: it gives the same first weights and the same batches to every configuration, so
that differences within a seed are what is compared.

Alphabet: m comparisons, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from qdtune.pareto import DRAWS, resampled

ALPHA = 0.05  # of a whole family of comparisons
EQUAL = 1e-6  # accuracies that lie no further apart are equal: float32 carries a fraction of a count to 7 digits
MANY = 100  # seeds, beyond which nobody wants to know how many more


class Paired(NamedTuple):
    """Statistics (m,) of paired differences: seeds, mean, sample deviation, two-sided p; NaN where unknown."""

    n: NDArray[np.int64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    p: NDArray[np.float64]


def paired(differences: ArrayLike) -> Paired:
    """Student's t test of each row against zero, with p NaN below two seeds.

    Where all differences of a row are equal, their spread is unknown rather than zero (accuracies are counts), and t
    says nothing. No difference at all has p = 1; any other the p of the signs alone, 2^(1 - n) (Fisher 1935).

    Args:
        differences: (m, S), NaN where a seed is missing.
    """
    table = np.asarray(differences, dtype=float)
    there = np.isfinite(table)
    n = there.sum(axis=1)
    known = np.maximum(n, 1)
    mean = np.where(n > 0, np.where(there, table, 0).sum(axis=1) / known, np.nan)
    squares = np.where(there, table - mean[:, None], 0) ** 2
    spread = np.where(there, table, -np.inf).max(axis=1, initial=-np.inf)
    spread = spread - np.where(there, table, np.inf).min(axis=1, initial=np.inf)
    std = np.where(n > 1, np.where(spread > EQUAL, np.sqrt(squares.sum(axis=1) / np.maximum(n - 1, 1)), 0), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(np.maximum(n - 1, 1), -np.abs(mean) * np.sqrt(n) / std)
    p = np.where(spread > EQUAL, p, np.where(np.abs(mean) > EQUAL, 2.0 ** (1 - n), 1.0))
    return Paired(n, mean, std, np.where(n > 1, p, np.nan))


def holm(p: ArrayLike, alpha: float = ALPHA) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Which hypotheses of one family fall, and the level at which each was tested (Holm 1979).

    The least p is tested at alpha / m, the next at alpha / (m - 1) and so on up to the first that stands; that one
    and all after it stand, at its level. A p that is NaN is no test: it stands, at the level NaN, and is not counted.

    Args:
        p: (m,), the p values.
        alpha: of the family.
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


def corrected(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each p of one family after Holm's correction: the least level of the family at which it falls; NaN as it is.

    Args:
        p: (m,), the p values; a NaN is no test and is not counted.
    """
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")  # NaN last
    m = np.count_nonzero(np.isfinite(values))
    found = np.full(len(values), np.nan)
    found[order[:m]] = np.maximum.accumulate(values[order[:m]] * np.arange(m, 0, -1)).clip(max=1)
    return found


def half_width(std: float, n: int, alpha: float) -> float:
    """Half of Student's t interval of a mean of `n` >= 2, at the confidence 1 - alpha."""
    return float(stdtrit(n - 1, 1 - alpha / 2)) * std / math.sqrt(n)


def seeds_needed(mean: float, std: float, alpha: float) -> int | None:
    """The fewest seeds at which the interval excludes zero if mean and spread stay; MANY + 1 for more than MANY.

    None where more seeds would not help: there is no effect, or no spread to judge it by.
    """
    if std == 0 or abs(mean) <= EQUAL:
        return None
    return next((n for n in range(2, MANY + 1) if half_width(std, n, alpha) < abs(mean)), MANY + 1)


def win_shares(values: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """For each group of rows the share of bootstrap draws over seeds in which each has the highest mean of its group.

    Of equal means the first wins. Shares sum to one in each group.

    Args:
        values: (n, S), NaN where a row lacks the seed; every row has one at least.
        groups: row numbers, none of them empty.
    """
    wins = [np.zeros(len(group)) for group in groups]
    for means in resampled(values) if groups else ():
        by_draw = np.ascontiguousarray(means.T)
        for group, count in zip(groups, wins, strict=True):
            count += np.bincount(by_draw[:, group].argmax(axis=1), minlength=len(group))
    return [count / DRAWS for count in wins]
