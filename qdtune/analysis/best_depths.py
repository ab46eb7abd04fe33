"""Finds the best depth at each number of bits and within each cost of the front, and tests it against the others."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.analysis.best import describe_setting
from qdtune.analysis.best_depth import FAILED, STOPPED, TOO_LARGE, BestDepth
from qdtune.pareto import front
from qdtune.spec.objectives import Objective
from qdtune.spec.tasks import Metric
from qdtune.store.pairs import SIZES_APART
from qdtune.store.seed_tests import correct_p, equal_within, t_test, win_shares
from qdtune.store.tables import Table


def test_best(best: NDArray[np.float64], others: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """The p values of paired t tests of one row (S,) against others (m, S)."""
    return t_test(best - others, equal_within(metric, best, others)).p


def find_best_depths(
    rows: list[dict[str, Any]],
    values: NDArray[np.float64],
    tables: tuple[Table, Table],
    varying: tuple[str, ...],
    metric: Metric,
    costs: tuple[Objective, ...],
) -> tuple[tuple[BestDepth, ...], tuple[BestDepth, ...]]:
    """The best depth at each number of bits, and within each value of the first cost on its front.

    Args:
        rows, values: as `_rank_rows` returns them.
        tables: the Pareto table within the budget, and the whole one.
        varying: the axes with several values.
        metric: that judges.
        costs: of the front.
    """
    name = costs[0].name
    every, whole = (table.select(["weight_bits", name, "depth", "state"]).to_pylist() for table in tables)
    places, found = _list_places(rows, metric, name), []
    wins = win_shares(metric.sign * values, [*places.values()])
    for ((n, size), group), shares in zip(places.items(), wins, strict=True):
        top = group[find_top([rows[i] for i in group], metric)]
        best, n_tested = rows[top], np.isfinite(values[top]).sum()
        firsts = _find_best_rows(rows, group, metric)
        p = test_best(values[firsts.pop(best["depth"])], values[list(firsts.values())], metric)
        more = _list_more(best, [rows[i] for i in firsts.values()], costs) if size is None else ()
        probabilities = _add_shares(np.array([rows[i]["depth"] for i in group]), shares)
        known = probabilities if n_tested > 1 or len(probabilities) == 1 else {}
        here, anywhere = _list_within(every, n, (name, size)), _list_within(whole, n, (name, None))
        ended = _find_missing(here, anywhere, probabilities, name)
        found.append(
            BestDepth(
                n,
                size,
                best["depth"],
                best[metric.val],
                known,
                find_largest(p),
                {cost.name: best[cost.name] for cost in costs},
                more,
                best["n_seeds"],
                ended,
                metric,
                describe_setting(best, varying, "depth", *(["weight_bits"] if size is None else [])),
                costs=costs,
            )
        )
    by_bits, by_size = ([one for one in found if (one.budget is None) is of_bits] for of_bits in (True, False))
    return _correct_family(by_bits), _correct_family(by_size)


def _add_shares(depths: NDArray[np.int64], shares: NDArray[np.float64]) -> dict[int, float]:
    """The share of draws that each depth wins: the sum over its configurations, one depth and one share for each."""
    return {int(depth): float(shares[depths == depth].sum()) for depth in np.unique(depths)}


def _list_more(
    best: Mapping[str, Any], others: Sequence[Mapping[str, Any]], costs: Sequence[Objective]
) -> tuple[Objective, ...]:
    """The costs of which a row has over 5 % more than each of some others; none without others."""
    most = {cost: max((row[cost.name] for row in others), default=math.inf) for cost in costs}
    return tuple(cost for cost in costs if best[cost.name] > (1 + SIZES_APART) * most[cost])


def _find_missing(
    here: list[dict[str, Any]], anywhere: list[dict[str, Any]], found: Mapping[int, float], cost: str
) -> dict[int, str]:
    """Why each depth has no place in a comparison of depths.

    Args:
        here: the configurations that it is about.
        anywhere: the same without a limit on their cost.
        found: the depths that have a place.
        cost: the name of the cost.
    """
    sized = {row["depth"] for row in anywhere if row[cost]}
    return _find_ended(here, found) | dict.fromkeys(sorted(sized - {row["depth"] for row in here}), TOO_LARGE)


def _find_best_rows(rows: list[dict[str, Any]], group: NDArray[np.int64], metric: Metric) -> dict[int, int]:
    """The index of the best row of each depth, among the rows of a group of indices."""
    ranking = sorted(group, key=lambda i: -metric.sign * rows[i][metric.val])
    return {rows[i]["depth"]: int(i) for i in reversed(ranking)}  # from best to worst, the last that is set stays


def _list_places(
    rows: list[dict[str, Any]], metric: Metric, cost: str
) -> dict[tuple[int | None, int | None], NDArray[np.int64]]:
    """The bits or the cost of each question about a best depth -> the indices of the rows that it is about.

    The values of the cost are those on the front of the metric against this cost alone, even if the front of the
    sweep has further costs.
    """
    sizes = np.array([row[cost] for row in rows])
    places: dict[tuple[int | None, int | None], NDArray[np.int64]] = {}
    for n in sorted({row["weight_bits"] for row in rows}):
        places[n, None] = np.flatnonzero([row["weight_bits"] == n for row in rows])
    both = np.array([[-metric.sign * row[metric.val], row[cost]] for row in rows]).reshape(-1, 2)
    for size in sorted(set(sizes[front(both)].tolist())):
        places[None, size] = np.flatnonzero(sizes <= size)
    return places


def _list_within(
    rows: Iterable[dict[str, Any]], bits: int | None, limit: tuple[str, int | None]
) -> list[dict[str, Any]]:
    """The rows at a number of bits, and of at most so much of a cost, given by its name; None: any."""
    cost, most = limit
    return [
        row
        for row in rows
        if (bits is None or row["weight_bits"] == bits) and (most is None or (row[cost] and row[cost] <= most))
    ]


def _find_ended(rows: Iterable[Mapping[str, Any]], finished: Collection[int]) -> dict[int, str]:
    """How the depths ended that are not in `finished`, see `BestDepth.ended`.

    Args:
        rows: configurations with their depth and state.
        finished: depths of which one was trained to its end.
    """
    states: dict[int, set[str]] = {}
    for row in rows:
        if row["depth"] not in finished:
            states.setdefault(row["depth"], set()).add(row["state"])
    ended = {}
    for depth, those in sorted(states.items()):
        if "ok" in those:  # some of its seeds are missing
            continue
        if those == {"pruned"}:
            ended[depth] = STOPPED
        else:
            ended[depth] = f"{STOPPED} or {FAILED}" if "pruned" in those else FAILED
    return ended


def _correct_family(family: Iterable[BestDepth]) -> tuple[BestDepth, ...]:
    """The same with corrected p values, because one of many numbers of bits would be significant by chance."""
    family = tuple(family)
    p = correct_p(np.array([np.nan if one.p is None else one.p for one in family]))
    return tuple(
        replace(one, p=None if one.p is None else float(value)) for one, value in zip(family, p, strict=True)
    )


def find_top(rows: list[dict[str, Any]], metric: Metric) -> int:
    """The index of the best mean; of equal means the first, which costs least."""
    return max(range(len(rows)), key=lambda i: (metric.sign * rows[i][metric.val], -i))


def find_largest(p: NDArray[np.float64]) -> float | None:
    return float(p.max()) if len(p) and np.isfinite(p).all() else None
