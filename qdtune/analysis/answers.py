"""The answers of a sweep in numbers and in sentences: which results are significant and which are not.

Every verdict is based on the validation split; numbers of the test set are only reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.analysis.behind import CurveBook
from qdtune.analysis.best import Best, describe_setting
from qdtune.analysis.best_depth import FAILED, STOPPED, TOO_LARGE, BestDepth
from qdtune.analysis.comparison import Comparison, named_settings, wait_for_partner
from qdtune.analysis.comparisons import compare_activations, compare_at_looks, compare_depths
from qdtune.analysis.near_ties import NearTie, find_near_ties
from qdtune.spec.axes import AXIS_NAMES, idle_at_depth
from qdtune.spec.choices import QUESTION_AXES
from qdtune.spec.tasks import Metric
from qdtune.store.columns import metric_in
from qdtune.store.decisions import Schedule, find_sides_at_looks
from qdtune.store.pairs import SIZES_APART, find_sides, list_rows
from qdtune.store.pareto_table import by_seed
from qdtune.store.questions import SETTING
from qdtune.store.seed_tests import apply_holm, correct_p, equal_within, t_test, win_shares
from qdtune.store.tables import Table, rows_equal, rows_known, rows_of_seeds, rows_where


@dataclass(frozen=True)
class Answers:
    """All answers of a sweep.

    Attributes:
        depth: the comparisons of depths.
        activation: the comparisons of activations between the factors.
        best: the best configuration within the budget.
        by_bits: the best depth at each number of bits, ascending.
        by_size: the best depth within each size of the front, ascending.
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
    metric, varying = metric_in(trials), _find_varying(pareto)
    curves = curves or CurveBook(trials, history)
    depth, activation, ties = _compare(trials, curves, schedule)
    if is_unfinished:
        depth = tuple(
            one if tuple(getattr(one, name) for name in SETTING) in lonely else wait_for_partner(one) for one in depth
        )
        activation = tuple(map(wait_for_partner, activation))
    # Who has further seeds depends on results, so the tests of the best configurations use the first seeds alone.
    tested = trials if schedule is None else rows_of_seeds(trials, schedule.seeds)
    rows, values = _rank_rows(tested, pareto, metric)
    n_tested = None if schedule is None else len(schedule.seeds)
    if n_tested is not None and max(pareto["n_seeds"].to_pylist(), default=0) <= n_tested:
        n_tested = None  # nobody has more
    tables = pareto, pareto if whole is None else whole
    by_bits, by_size = (
        tuple(replace(one, n_tested=n_tested) for one in found)
        for found in _find_best_depths(rows, values, tables, varying, metric)
    )
    best = replace(_find_best(rows, values, budget, varying, metric), n_tested=n_tested)
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


def _rank_rows(trials: Table, pareto: Table, metric: Metric) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """The ranked rows of the Pareto table by size, and their metric (n, S) by seed, NaN if a seed is missing."""
    keys = [*AXIS_NAMES, "dataset"]
    rows = sorted(rows_known(pareto, "pareto_rank").to_pylist(), key=_size_order)
    place = {tuple(row[name] for name in keys): i for i, row in enumerate(rows)}
    ok = rows_equal(trials, "state", "ok")
    owner = [place.get(key, -1) for key in zip(*(ok[name].to_pylist() for name in keys), strict=True)]
    known = sorted(set(owner) - {-1})  # all, unless the first seeds of a configuration are damaged
    rows, places = [rows[i] for i in known], np.searchsorted(known, [i for i in owner if i >= 0])
    ok = rows_where(ok, [i >= 0 for i in owner])
    return rows, by_seed(places, ok["seed"], ok[metric.val])


def _size_order(row: Mapping[str, Any]) -> tuple[int, str]:
    return row["size_bytes"], row["trial_id"]


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
    rows: list[dict[str, Any]],
    values: NDArray[np.float64],
    budget: int | None,
    varying: tuple[str, ...],
    metric: Metric,
) -> Best:
    count = len(rows) if budget is None else sum(row["size_bytes"] <= budget for row in rows)
    if not count:
        return Best(budget, None, metric=metric)
    best = _find_top(rows[:count], metric)
    rejected, _ = apply_holm(_test_best(values[best], np.delete(values[:count], best, axis=0), metric))
    others = [row for i, row in enumerate(rows[:count]) if i != best]
    rivals = [row for row, is_other in zip(others, rejected, strict=True) if not is_other]
    p_best = None
    if np.isfinite(values[best]).sum() > 1:
        p_best = float(win_shares(metric.sign * values[:count], [np.arange(count)])[0][best])
    rivals.sort(key=lambda row: (-metric.sign * row[metric.val], _size_order(row)))
    same = equal_within(metric, [rows[best][metric.val]])
    tied = sum(
        row["size_bytes"] == rows[best]["size_bytes"] and abs(row[metric.val] - rows[best][metric.val]) <= same
        for row in others
    )
    return Best(budget, rows[best], p_best, tuple(rivals), varying, len(others), metric, n_tied=int(tied))


def _test_best(best: NDArray[np.float64], others: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """The p values of paired t tests of one row (S,) against others (m, S)."""
    return t_test(best - others, equal_within(metric, best, others)).p


def _find_best_depths(
    rows: list[dict[str, Any]],
    values: NDArray[np.float64],
    tables: tuple[Table, Table],
    varying: tuple[str, ...],
    metric: Metric,
) -> tuple[tuple[BestDepth, ...], tuple[BestDepth, ...]]:
    """The best depth at each number of bits, and within each size of the front.

    Args:
        rows, values: as `_rank_rows` returns them.
        tables: the Pareto table within the budget, and the whole one.
        varying: the axes with several values.
        metric: that judges.
    """
    every, whole = (table.select(["weight_bits", "size_bytes", "depth", "state"]).to_pylist() for table in tables)
    sizes = np.array([row["size_bytes"] for row in rows])
    places, found = _list_places(rows), []
    for (n, size), group, shares in zip(
        places, places.values(), win_shares(metric.sign * values, [*places.values()]), strict=True
    ):
        top = group[_find_top([rows[i] for i in group], metric)]
        best, n_tested = rows[top], np.isfinite(values[top]).sum()
        depths = np.array([rows[i]["depth"] for i in group])
        firsts = _find_best_rows(rows, group, metric)
        p = _test_best(values[firsts.pop(best["depth"])], values[list(firsts.values())], metric)
        others = sizes[list(firsts.values())]
        larger = size is None and bool(firsts) and best["size_bytes"] > (1 + SIZES_APART) * max(others)
        probabilities = {int(d): float(shares[depths == d].sum()) for d in np.unique(depths)}
        known = probabilities if n_tested > 1 or len(probabilities) == 1 else {}
        ended = _find_missing(_list_within(every, n, size), _list_within(whole, n, None), probabilities)
        found.append(
            BestDepth(
                n,
                size,
                best["depth"],
                best[metric.val],
                known,
                _find_largest(p),
                best["size_bytes"],
                bool(larger),
                best["n_seeds"],
                ended,
                metric,
                describe_setting(best, varying, "depth", *(["weight_bits"] if size is None else [])),
            )
        )
    by_bits, by_size = ([one for one in found if (one.budget is None) is of_bits] for of_bits in (True, False))
    return _correct_family(by_bits), _correct_family(by_size)


def _find_missing(
    here: list[dict[str, Any]], anywhere: list[dict[str, Any]], found: Mapping[int, float]
) -> dict[int, str]:
    """Why each depth has no place in a comparison of depths.

    Args:
        here: the configurations that it is about.
        anywhere: the same without a limit on their size.
        found: the depths that have a place.
    """
    sized = {row["depth"] for row in anywhere if row["size_bytes"]}
    return _find_ended(here, found) | dict.fromkeys(sorted(sized - {row["depth"] for row in here}), TOO_LARGE)


def _find_best_rows(rows: list[dict[str, Any]], group: NDArray[np.int64], metric: Metric) -> dict[int, int]:
    """The index of the best row of each depth, among the rows of a group of indices."""
    ranking = sorted(group, key=lambda i: -metric.sign * rows[i][metric.val])
    return {rows[i]["depth"]: int(i) for i in reversed(ranking)}  # from best to worst, the last that is set stays


def _list_places(rows: list[dict[str, Any]]) -> dict[tuple[int | None, int | None], NDArray[np.int64]]:
    """The bits or the bytes of each question about a best depth -> the indices of the rows that it is about."""
    sizes = np.array([row["size_bytes"] for row in rows])
    places: dict[tuple[int | None, int | None], NDArray[np.int64]] = {}
    for n in sorted({row["weight_bits"] for row in rows}):
        places[n, None] = np.flatnonzero([row["weight_bits"] == n for row in rows])
    for size in sorted({row["size_bytes"] for row in rows if row["is_pareto"]}):
        places[None, size] = np.flatnonzero(sizes <= size)
    return places


def _list_within(rows: Iterable[dict[str, Any]], bits: int | None, size: int | None) -> list[dict[str, Any]]:
    """The rows at a number of bits, and of at most so many bytes; None: any."""
    return [
        row
        for row in rows
        if (bits is None or row["weight_bits"] == bits)
        and (size is None or (row["size_bytes"] and row["size_bytes"] <= size))
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


def _find_top(rows: list[dict[str, Any]], metric: Metric) -> int:
    """The index of the best mean; of equal means the first, which is the smallest in bytes."""
    return max(range(len(rows)), key=lambda i: (metric.sign * rows[i][metric.val], -i))


def _find_largest(p: NDArray[np.float64]) -> float | None:
    return float(p.max()) if len(p) and np.isfinite(p).all() else None
