"""Cohorts: the seeds of one configuration that were trained together.

A configuration has several cohorts if `replicate` or `duplicates` gave it more seeds. `Result` and `StoredCohort` are
cohorts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from qdtune.pareto import round_mean
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.objectives import COSTS, Objective, weigh
from qdtune.store.columns import FINAL, STATES, metric_in
from qdtune.store.further_seeds import SeedCohort
from qdtune.store.results import SeedEnd, mean
from qdtune.store.tables import Table, rows_among, rows_equal

Key = tuple[Any, ...]  # the axes of a configuration, as `Configuration.key`


class Cohort(SeedCohort, Protocol):
    """Seeds of one configuration that were trained together and have ended."""

    @property
    def state(self) -> str:
        """The worst state of its seeds."""

    @property
    def score(self) -> float | None:
        """Its score on the validation split at the end (see `results`); None unless all seeds are `ok`."""

    @property
    def scores(self) -> tuple[float, ...]:
        """The highest score up to each epoch of its curve."""


C = TypeVar("C", bound=Cohort)


@dataclass(frozen=True)
class Finished(Generic[C]):
    """A configuration whose seeds all ended `ok`; cohorts that will run again do not count.

    Attributes:
        costs: those of the front, of one replica; less is better.
        score: the score of all its seeds on the validation split.
        cohorts: its finished cohorts, at least one.
    """

    costs: tuple[float, ...]
    score: float
    cohorts: list[C]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all its cohorts."""
        return [seed for cohort in self.cohorts for seed in cohort.seeds]


def find_costs(cohort: SeedCohort, costs: Sequence[Objective]) -> tuple[float, ...]:
    """These costs of a cohort; less is better."""
    return weigh(costs, [cohort.value_of(one) for one in costs])


def find_finished(cohorts: Iterable[C], costs: Sequence[Objective]) -> list[Finished[C]]:
    """The configurations that have a score, in the order of their first cohorts, with the costs of the front."""
    groups: dict[Key, list[C]] = {}
    for cohort in cohorts:
        if cohort.state in FINAL:
            groups.setdefault(cohort.key, []).append(cohort)
    means = [(mean([cohort.score for cohort in group for _ in cohort.seeds]), group) for group in groups.values()]
    return [Finished(find_costs(group[0], costs), score, group) for score, group in means if not math.isnan(score)]


def best_up_to(found: Iterable[Finished[C]]) -> Callable[[tuple[float, ...]], float]:
    """A function: costs -> the highest score of those that exceed none of them; minus infinity if none does."""
    ordered = sorted(found, key=lambda one: one.costs)
    if ordered and len(ordered[0].costs) > 1:
        costs, scores = np.array([one.costs for one in ordered]), np.array([one.score for one in ordered])
        return lambda most: float(scores[(costs <= most).all(axis=1)].max(initial=-math.inf))
    sizes, bests = [one.costs for one in ordered], [-math.inf]
    for one in ordered:
        bests.append(max(bests[-1], one.score))
    return lambda most: bests[bisect_right(sizes, most)]


def choose_further_seeds(used: Iterable[int], count: int) -> tuple[int, ...]:
    """`count` seeds above all seeds in use."""
    first = max(used) + 1
    return tuple(range(first, first + count))


@dataclass(frozen=True)
class StoredCohort:
    """A `Cohort` read from tables; `costs` are those that are known, by name."""

    key: Key
    seeds: tuple[int, ...]
    costs: Mapping[str, float]
    state: str
    score: float | None
    scores: tuple[float, ...] = ()
    trial_id: str = ""
    ends: tuple[SeedEnd, ...] = ()

    def value_of(self, cost: Objective) -> float:
        """A cost of one replica; infinite if unknown."""
        return self.costs.get(cost.name, math.inf)


def find_stored_cohorts(trials: Table, history: Table) -> list[StoredCohort]:
    """The cohorts in the tables of a run folder.

    Args:
        trials: one row per seed, as `columns.trials_schema`; only rows of this sweep.
        history: one row per seed and epoch, as `columns.history_schema`.
    """
    metric = metric_in(trials)
    by_seed, costs = ("seed", "state", metric.val, "error", "seconds"), [one.name for one in COSTS]
    shared = (*costs, *AXIS_NAMES)
    asked = [(name, "list") for name in by_seed] + [(name, "first") for name in shared]
    groups = trials.group_by("trial_id", use_threads=False).aggregate(asked)
    names = ["trial_id", *(f"{name}_list" for name in by_seed), *(f"{name}_first" for name in shared)]
    columns = (groups[name].to_pylist() for name in names)
    counts = map(len, groups["seed_list"].to_pylist())
    curves = _find_curves(history, dict(zip(groups["trial_id"].to_pylist(), counts, strict=True)))
    found = []
    for trial_id, seeds, states, values, errors, seconds, *others in zip(*columns, strict=True):
        state = max(states, key=STATES.index)
        score = metric.sign * mean(values) if state == "ok" else None
        known = {name: value for name, value in zip(costs, others, strict=False) if value is not None}
        axes, curve = tuple(others[len(costs) :]), curves.get(trial_id, ())
        times = [time or 0.0 for time in seconds]
        ends = tuple(map(SeedEnd, seeds, states, values, errors, times))
        found.append(StoredCohort(axes, tuple(sorted(seeds)), known, state, score, curve, trial_id, ends))
    return found


def _find_curves(history: Table, seeds: Mapping[str, int]) -> dict[str, tuple[float, ...]]:
    """trial_id -> the highest mean score up to each QAT epoch at which all its seeds have a value."""
    metric = metric_in(history)
    curves = rows_equal(rows_among(history, "trial_id", seeds.keys()), "phase", "qat")
    sums = curves.group_by(["trial_id", "epoch"], use_threads=False).aggregate(
        [(metric.val, "sum"), (metric.val, "count")]
    )
    sums = sums.sort_by([("trial_id", "ascending"), ("epoch", "ascending")])
    columns: Sequence[list[Any]] = [
        sums[name].to_pylist() for name in ("trial_id", f"{metric.val}_sum", f"{metric.val}_count")
    ]
    found: dict[str, list[float]] = {}
    for trial_id, total, count in zip(*columns, strict=True):
        if count == seeds[trial_id] and not math.isnan(total):
            best = found.setdefault(trial_id, [])
            best.append(max([metric.sign * round_mean(total / count), *best[-1:]]))
    return {trial_id: tuple(best) for trial_id, best in found.items()}
