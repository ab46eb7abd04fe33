"""The answers of a sweep in numbers and in sentences: which results are significant and which are not.

Every verdict is based on the validation split; numbers of the test set are only reported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.analysis.behind import CurveBook
from qdtune.analysis.best import Best
from qdtune.analysis.best_depth import BestDepth
from qdtune.analysis.best_depths import find_best_depths, find_top, test_best
from qdtune.analysis.comparison import Comparison, named_settings, wait_for_partner
from qdtune.analysis.comparisons import compare_activations, compare_at_looks, compare_depths
from qdtune.analysis.near_ties import NearTie, find_near_ties
from qdtune.spec.axes import AXIS_NAMES, idle_at_depth
from qdtune.spec.choices import QUESTION_AXES
from qdtune.spec.objectives import Objective, weigh
from qdtune.spec.tasks import Metric
from qdtune.store.columns import costs_in, metric_in
from qdtune.store.decisions import Schedule, find_sides_at_looks
from qdtune.store.pairs import find_sides, list_rows
from qdtune.store.pareto_table import by_seed
from qdtune.store.questions import SETTING
from qdtune.store.seed_tests import apply_holm, equal_within, win_shares
from qdtune.store.tables import Table, rows_equal, rows_known, rows_of_seeds, rows_where


@dataclass(frozen=True)
class Answers:
    """All answers of a sweep.

    Attributes:
        depth: the comparisons of depths.
        activation: the comparisons of activations between the factors.
        best: the best configuration within the budget.
        by_bits: the best depth at each number of bits, ascending.
        by_size: the best depth within each size, or other first cost, of the front against it, ascending.
        front: the near-ties of the front that got more seeds.
    """

    depth: tuple[Comparison, ...]
    activation: tuple[Comparison, ...]
    best: Best
    by_bits: tuple[BestDepth, ...]
    by_size: tuple[BestDepth, ...]
    front: tuple[NearTie, ...]

    @property
    def sentences(self) -> dict[str, tuple[str, ...]]:
        """Name of the attribute -> its sentences, which name the settings that vary in the sweep."""
        said = {}
        for axis in QUESTION_AXES:
            found: tuple[Comparison, ...] = getattr(self, axis)
            said[axis] = tuple(one.describe(named_settings(found)) for one in found)
        others = {
            name: tuple(one.sentence for one in getattr(self, name)) for name in ("by_bits", "by_size", "front")
        }
        return said | others | {"best": (self.best.sentence,)}


def answer(
    trials: Table,
    history: Table,
    pareto: Table,
    budget: int | None = None,
    curves: CurveBook | None = None,
    schedule: Schedule | None = None,
    whole: Table | None = None,
    is_unfinished: bool = False,
    lonely: Collection[tuple[Any, ...]] = (),
) -> Answers:
    """The answers that the tables of one sweep give.

    Args:
        trials: one row per seed, as `columns.trials_schema`.
        history: one row per seed and epoch, as `columns.history_schema`.
        pareto: one row per configuration, from `pareto_table.aggregate`.
        budget: bytes; None: no limit.
        curves: all curves of the sweep; None: only the curves in `history`.
        schedule: the looks of a sweep that adds seeds until comparisons are decided, else None.
        whole: the Pareto table without a budget; None: `pareto`.
        is_unfinished: whether configurations are left to train, which comparisons may wait for.
        lonely: the settings of comparisons of depths for which the plan has no partner, see `partners`.
    """
    metric, varying, costs = metric_in(trials), _find_varying(pareto), costs_in(pareto)
    curves = curves or CurveBook(trials, history)
    depth, activation, ties = _compare(trials, curves, schedule)
    if is_unfinished:
        depth = tuple(
            one if tuple(getattr(one, name) for name in SETTING) in lonely else wait_for_partner(one) for one in depth
        )
        activation = tuple(map(wait_for_partner, activation))
    # Who has further seeds depends on results, so the tests of the best configurations use the first seeds alone.
    tested = trials if schedule is None else rows_of_seeds(trials, schedule.seeds)
    rows, values = _rank_rows(tested, pareto, metric, costs)
    n_tested = None if schedule is None else len(schedule.seeds)
    if n_tested is not None and max(pareto["n_seeds"].to_pylist(), default=0) <= n_tested:
        n_tested = None  # nobody has more
    tables = pareto, pareto if whole is None else whole
    by_bits, by_size = (
        tuple(replace(one, n_tested=n_tested) for one in found)
        for found in find_best_depths(rows, values, tables, varying, metric, costs)
    )
    small = np.array([budget is None or row["size_bytes"] <= budget for row in rows], dtype=bool)
    best = _find_best(
        [row for row, is_small in zip(rows, small, strict=True) if is_small], values[small], metric, costs
    )
    best = replace(best, budget=budget, varying=varying, n_tested=n_tested)
    return Answers(depth, activation, best, by_bits, by_size, ties)


def _compare(
    trials: Table, curves: CurveBook, schedule: Schedule | None
) -> tuple[tuple[Comparison, ...], tuple[Comparison, ...], tuple[NearTie, ...]]:
    """The comparisons of depths and of activations, and the near-ties of the front."""
    if schedule is None:
        everything = find_sides(trials)
        return compare_depths(everything, curves), compare_activations(everything, curves), ()
    sides = find_sides_at_looks(list_rows(trials), schedule, metric_in(trials))
    depth, activation = (compare_at_looks(axis, schedule, sides, curves) for axis in QUESTION_AXES)
    return depth, activation, find_near_ties(schedule, sides)


def _rank_rows(
    trials: Table, pareto: Table, metric: Metric, costs: Sequence[Objective]
) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """The ranked rows of the Pareto table by costs, and their metric (n, S) by seed, NaN if a seed is missing."""
    keys = [*AXIS_NAMES, "dataset"]
    rows = sorted(rows_known(pareto, "pareto_rank").to_pylist(), key=lambda row: _cost_order(row, costs))
    place = {tuple(row[name] for name in keys): i for i, row in enumerate(rows)}
    ok = rows_equal(trials, "state", "ok")
    owner = [place.get(key, -1) for key in zip(*(ok[name].to_pylist() for name in keys), strict=True)]
    known = sorted(set(owner) - {-1})  # all, unless the first seeds of a configuration are damaged
    rows, places = [rows[i] for i in known], np.searchsorted(known, [i for i in owner if i >= 0])
    ok = rows_where(ok, [i >= 0 for i in owner])
    return rows, by_seed(places, ok["seed"], ok[metric.val])


def _cost_order(row: Mapping[str, Any], costs: Sequence[Objective]) -> tuple[Any, ...]:
    return *weigh(costs, [row[cost.name] for cost in costs]), row["trial_id"]


def _find_varying(pareto: Table) -> tuple[str, ...]:
    """The axes with several values among the configurations in which they have an effect."""
    values = pareto.select(AXIS_NAMES).to_pydict()
    idle = {depth: idle_at_depth(depth) for depth in set(values["depth"])}
    return tuple(
        axis
        for axis in AXIS_NAMES
        if len({x for x, depth in zip(values[axis], values["depth"], strict=True) if axis not in idle[depth]}) > 1
    )


def _find_best(
    rows: list[dict[str, Any]], values: NDArray[np.float64], metric: Metric, costs: tuple[Objective, ...]
) -> Best:
    """The best of rows with their metric, both as `_rank_rows` returns them."""
    if not rows:
        return Best(None, None, metric=metric, costs=costs)
    best = find_top(rows, metric)
    rejected, _ = apply_holm(test_best(values[best], np.delete(values, best, axis=0), metric))
    others = [row for i, row in enumerate(rows) if i != best]
    rivals = [row for row, is_other in zip(others, rejected, strict=True) if not is_other]
    p_best = None
    if np.isfinite(values[best]).sum() > 1:
        p_best = float(win_shares(metric.sign * values, [np.arange(len(rows))])[0][best])
    rivals.sort(key=lambda row: (-metric.sign * row[metric.val], *_cost_order(row, costs)))
    same = equal_within(metric, [rows[best][metric.val]])
    tied = sum(
        all(row[cost.name] == rows[best][cost.name] for cost in costs)
        and bool(abs(row[metric.val] - rows[best][metric.val]) <= same)
        for row in others
    )
    return Best(None, rows[best], p_best, tuple(rivals), (), len(others), metric, n_tied=tied, costs=costs)
