"""The unfinished part of a sweep: one answer for the queue that trains it and for readers of its run folder.

A cohort is the set of seeds of one configuration that were trained together. A configuration has several cohorts if
`replicate` or `duplicates` gave it more seeds. `Result` and `StoredCohort` are cohorts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from qdtune.datasets.dataset import DatasetInfo
from qdtune.pareto import round_mean
from qdtune.reach import Curve, Prospect, neighbours_of, rank_prospects
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.objectives import UNTRAINED_MARGIN, untrained_value
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import Metric
from qdtune.store.columns import FINAL, STATES, metric_in
from qdtune.store.further_seeds import SeedCohort, find_further_seeds
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
        size_bytes: the size of one replica.
        score: the score of all its seeds on the validation split.
        cohorts: its finished cohorts, at least one.
    """

    size_bytes: float
    score: float
    cohorts: list[C]

    @property
    def seeds(self) -> list[int]:
        """The seeds of all its cohorts."""
        return [seed for cohort in self.cohorts for seed in cohort.seeds]


@dataclass(frozen=True)
class Unfinished:
    """The unfinished part of a sweep, by the axes of the configurations.

    Attributes:
        waiting: configurations that are planned, or begun by the search, and have no final result.
        unasked: the number of configurations that the search may still propose.
        to_release: see `find_to_release`.
        to_replicate: see `find_to_replicate` and `decisions.find_further_seeds`.
    """

    waiting: frozenset[Key]
    unasked: int
    to_release: frozenset[Key]
    to_replicate: frozenset[Key]

    @property
    def count(self) -> int:
        """The number of unfinished configurations; each counts once."""
        return len(self.waiting | self.to_release | self.to_replicate) + self.unasked


def find_unfinished(spec: Spec, cohorts: Iterable[C], listed: Collection[Key] | None, planned: int) -> Unfinished:
    """The unfinished part of a sweep that is not running.

    Args:
        spec: resolved.
        cohorts: all cohorts of this sweep in the run folder.
        listed: the configurations of the plan; None if the method searches.
        planned: the total number of configurations that a search proposes; unused if `listed` is given.
    """
    known = list(cohorts)
    if listed is None:
        waiting = {cohort.key for cohort in known if not is_ended(spec, cohort.state)}
    else:
        first = [cohort for cohort in known if sorted(cohort.seeds) == sorted(spec.seeds)]
        waiting = set(listed) - {cohort.key for cohort in first if is_ended(spec, cohort.state)}
    return Unfinished(
        frozenset(waiting),
        count_unasked(planned, len({cohort.key for cohort in known})) if listed is None else 0,
        frozenset(cohort.key for cohort in find_to_release(spec, known)),
        frozenset(found.cohorts[0].key for found in find_to_replicate(spec, known))
        | frozenset(cohort.key for cohort, _ in find_further_seeds(spec, known)),
    )


def is_ended(spec: Spec, state: str) -> bool:
    """Whether a result in this state needs no further attempt. Without a pruner, a stopped trial is trained again."""
    if state == "pruned":
        return spec.early_terminate.type != "none"
    return state in FINAL


def count_unasked(planned: int, known: int) -> int:
    """The number of configurations that a search may still propose, if `known` of `planned` are proposed."""
    return max(0, planned - known)


def find_to_release(spec: Spec, cohorts: Iterable[C]) -> list[C]:
    """The stopped cohorts that have to be trained to their end all the same, the most promising one first.

    With a `risk` those whose prospect to reach the front is larger, see `find_prospects`. Without one those that no
    finished configuration of equal or smaller size, and of its group, beats: the trial that was ahead may have
    diverged or fallen back since. Only a pruner that compares with trials of equal or smaller size promises to keep
    the front.
    """
    if not spec.early_terminate.keeps_front:
        return []
    known, risk = list(cohorts), spec.early_terminate.risk
    if risk is not None:
        return [cohort for cohort, prospect in find_prospects(spec, known) if prospect.share > risk]
    best = _best_of_peers(spec, known)
    return [cohort for cohort in known if cohort.state == "pruned" and _last(cohort) > best(cohort)]


def find_prospects(spec: Spec, cohorts: Iterable[C]) -> list[tuple[C, Prospect]]:
    """The stopped cohorts of a pruner with a `risk`, each with its prospect to reach the front; the best one first.

    Each needs the score of the best finished configuration of no larger size in its group, of all its seeds.
    """
    metric, risk = spec.metric, spec.early_terminate.risk
    assert risk is not None, "only a risk asks for prospects"
    known = list(cohorts)
    best = _best_of_peers(spec, known)
    stopped = [cohort for cohort in known if cohort.state == "pruned" and cohort.scores]
    needed = [best(cohort) for cohort in stopped]
    prospects = rank_prospects(
        [
            (curve_of(cohort, metric), metric.progress(score) if math.isfinite(score) else -math.inf)
            for cohort, score in zip(stopped, needed, strict=True)
        ],
        learned_curves(known, metric, spec.data.info),
        neighbours_of(risk),
    )
    return [(stopped[prospect.place], prospect) for prospect in prospects]


def shares_to_reach(spec: Spec, cohorts: Iterable[Cohort]) -> dict[str, float]:
    """trial_id -> the share of its `Prospect`, of each stopped cohort; empty without a `risk`."""
    if spec.early_terminate.risk is None:
        return {}
    return {cohort.trial_id: prospect.share for cohort, prospect in find_prospects(spec, cohorts)}


def _best_of_peers(spec: Spec, cohorts: Iterable[C]) -> Callable[[C], float]:
    """A function: cohort -> the highest score of a finished configuration of no larger size in its group, or -inf."""

    def group_of(cohort: C) -> tuple[Any, ...]:
        return spec.early_terminate.group_of(dict(zip(AXIS_NAMES, cohort.key, strict=True)))

    groups: dict[tuple[Any, ...], list[Finished[C]]] = {}
    for one in find_finished(cohorts):
        groups.setdefault(group_of(one.cohorts[0]), []).append(one)
    best = {group: best_up_to(found) for group, found in groups.items()}
    return lambda cohort: best[group_of(cohort)](cohort.size_bytes) if group_of(cohort) in best else -math.inf


def learned_curves(cohorts: Iterable[Cohort], metric: Metric, info: DatasetInfo | None) -> list[Curve]:
    """The curves of the finished cohorts; those that learned nothing are left out, because they are like no other.

    Args:
        info: of the data set; None if it is not known, so that no curve is left out.
    """
    nothing = None if info is None else untrained_value(metric, info)
    floor = -math.inf if nothing is None else metric.sign * nothing + UNTRAINED_MARGIN
    return [
        curve_of(cohort, metric)
        for cohort in cohorts
        if cohort.scores and cohort.score is not None and cohort.score > floor
    ]


def curve_of(cohort: Cohort, metric: Metric) -> Curve:
    """The progress of a cohort that has a curve; with an end if it is finished."""
    best = tuple(metric.progress(score) for score in cohort.scores)
    end = None if cohort.score is None else metric.progress(cohort.score)
    return Curve(curve_name(cohort), best, end)


def curve_name(cohort: Cohort) -> str:
    """What tells the curve of a cohort from others."""
    return repr((cohort.key, cohort.seeds))


def _last(cohort: Cohort) -> float:
    """The highest score of its curve; minus infinity if the curve is empty."""
    return cohort.scores[-1] if cohort.scores else -math.inf


def find_to_replicate(spec: Spec, cohorts: Iterable[C]) -> list[Finished[C]]:
    """The configurations on the front, or close behind it, with fewer seeds than `replicate` asks for."""
    wanted = spec.replicate
    if wanted is None or wanted.front is None:
        return []
    ended = find_finished(cohorts)
    best = best_up_to(ended)
    near = [one for one in ended if best(one.size_bytes) - one.score <= wanted.within]
    return [one for one in near if len(one.seeds) < (wanted.front or 0)]


def find_finished(cohorts: Iterable[C]) -> list[Finished[C]]:
    """The configurations that have a score, in the order of their first cohorts."""
    groups: dict[Key, list[C]] = {}
    for cohort in cohorts:
        if cohort.state in FINAL:
            groups.setdefault(cohort.key, []).append(cohort)
    means = [(mean([cohort.score for cohort in group for _ in cohort.seeds]), group) for group in groups.values()]
    return [Finished(group[0].size_bytes, score, group) for score, group in means if not math.isnan(score)]


def best_up_to(found: Iterable[Finished[C]]) -> Callable[[float], float]:
    """A function: size in bytes -> the highest score up to this size, or minus infinity if there is none."""
    sizes, bests = [], [-math.inf]
    for one in sorted(found, key=lambda one: one.size_bytes):
        sizes.append(one.size_bytes)
        bests.append(max(bests[-1], one.score))
    return lambda size: bests[bisect_right(sizes, size)]


@dataclass(frozen=True)
class StoredCohort:
    """A `Cohort` read from tables."""

    key: Key
    seeds: tuple[int, ...]
    size_bytes: float
    state: str
    score: float | None
    scores: tuple[float, ...] = ()
    trial_id: str = ""
    ends: tuple[SeedEnd, ...] = ()


def find_stored_cohorts(trials: Table, history: Table) -> list[StoredCohort]:
    """The cohorts in the tables of a run folder.

    Args:
        trials: one row per seed, as `columns.trials_schema`; only rows of this sweep.
        history: one row per seed and epoch, as `columns.history_schema`.
    """
    metric = metric_in(trials)
    by_seed, shared = ("seed", "state", metric.val, "error", "seconds"), ("size_bytes", *AXIS_NAMES)
    asked = [(name, "list") for name in by_seed] + [(name, "first") for name in shared]
    groups = trials.group_by("trial_id", use_threads=False).aggregate(asked)
    names = ["trial_id", *(f"{name}_list" for name in by_seed), *(f"{name}_first" for name in shared)]
    columns = (groups[name].to_pylist() for name in names)
    counts = map(len, groups["seed_list"].to_pylist())
    curves = _find_curves(history, dict(zip(groups["trial_id"].to_pylist(), counts, strict=True)))
    found = []
    for trial_id, seeds, states, values, errors, seconds, size, *axes in zip(*columns, strict=True):
        state = max(states, key=STATES.index)
        score = metric.sign * mean(values) if state == "ok" else None
        curve, size = curves.get(trial_id, ()), math.inf if size is None else size
        times = [time or 0.0 for time in seconds]
        ends = tuple(map(SeedEnd, seeds, states, values, errors, times))
        found.append(StoredCohort(tuple(axes), tuple(sorted(seeds)), size, state, score, curve, trial_id, ends))
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
