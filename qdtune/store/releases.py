"""Releases: stopped cohorts that are trained to their end all the same, and what came of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from qdtune.datasets.dataset import DatasetInfo
from qdtune.messages import format_count, list_first
from qdtune.reach import Curve, Prospect, neighbours_of, rank_prospects
from qdtune.spec.axes import AXIS_NAMES, find_varying, short_label
from qdtune.spec.objectives import UNTRAINED_MARGIN, untrained_value
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import Metric
from qdtune.store.cohorts import C, Cohort, Finished, best_up_to, find_costs, find_finished
from qdtune.store.tables import Table


def find_to_release(spec: Spec, cohorts: Iterable[C]) -> list[C]:
    """The stopped cohorts that have to be trained to their end all the same, the most promising one first.

    With a `risk` those whose prospect to reach the front is larger, see `find_prospects`. Without one those that no
    finished configuration of no larger costs, and of its group, beats: the trial that was ahead may have diverged or
    fallen back since. Only a pruner that compares with trials of no larger costs promises to keep the front.
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

    Each needs the score of the best finished configuration of no larger costs in its group, of all its seeds.
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
    """A function: cohort -> the highest score of a finished one of no larger costs in its group, or -inf."""

    def group_of(cohort: C) -> tuple[Any, ...]:
        return spec.early_terminate.group_of(dict(zip(AXIS_NAMES, cohort.key, strict=True)))

    groups: dict[tuple[Any, ...], list[Finished[C]]] = {}
    for one in find_finished(cohorts, spec.costs):
        groups.setdefault(group_of(one.cohorts[0]), []).append(one)
    best = {group: best_up_to(found) for group, found in groups.items()}
    return lambda cohort: (
        best[group_of(cohort)](find_costs(cohort, spec.costs)) if group_of(cohort) in best else -math.inf
    )


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


def describe_releases(pareto: Table) -> str:
    """How many stopped trials were released, and which of them joined the front; empty if none was released.

    Args:
        pareto: the Pareto table.
    """
    rows = pareto.to_pylist()
    released = [row for row in rows if row["released"] and row["state"] != "pruned"]
    if not released:
        return ""
    varying = find_varying(rows)
    joined = [short_label(row, varying) for row in released if row["is_pareto"]]
    were = "was released and trained to its end" if len(released) == 1 else "were released and trained to their end"
    which = f"{len(joined)} of them joined the front: {list_first(joined)}" if joined else "none joined the front"
    if len(released) == 1:
        which = f"it joined the front: {joined[0]}" if joined else "it did not join the front"
    return f"{format_count(len(released), 'stopped trial')} {were}; {which}"
