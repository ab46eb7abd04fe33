"""The results in a run folder as trials of a sweep: states, scores and curves.

A score is the mean of the metric over the seeds, negated if the metric goes down: more is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from qdtune.pareto import round_mean
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import Objective, find_known
from qdtune.spec.plan import keep_possible, make_trial
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import metric_of
from qdtune.store.columns import STATES, trials_schema_of
from qdtune.store.parquet import complete_table

Epochs = dict[int, list[float | None]]  # QAT epoch from 1 -> a number per seed, None after a seed has diverged
Rows = dict[str, list[dict[str, Any]]]  # trial_id -> its rows of the table `trials`


class SeedEnd(NamedTuple):
    """How one seed of a trial ended.

    Attributes:
        seed: the seed.
        state: its state.
        value: the metric on the validation split; None if there is none.
        error: as in its row.
        seconds: of its training; 0 if unknown.
    """

    seed: int
    state: str
    value: float | None
    error: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """The result of one trial.

    Attributes:
        trial: the configuration and its seeds.
        state: the worst state of its seeds.
        score: the score on the validation split at the end; None unless all seeds are `ok`.
        curve: the metric on the validation split after each QAT epoch.
        seconds: QAT epoch -> the seconds of all seeds together.
        pruned_by: the trial that beat it, or the rule that stopped it.
        finished_at: the time of its end.
        ends: how each seed ended.
    """

    trial: Configuration
    state: str
    score: float | None
    curve: Epochs
    seconds: dict[int, float]
    pruned_by: str | None
    finished_at: datetime
    ends: tuple[SeedEnd, ...] = ()

    @property
    def trial_id(self) -> str:
        """The id of the trial."""
        return self.trial.trial_id

    @property
    def key(self) -> tuple[Any, ...]:
        """The axes of its configuration."""
        return self.trial.key

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were trained together."""
        return self.trial.seeds

    def value_of(self, cost: Objective) -> int:
        """A cost of one replica."""
        return find_known(self.trial, cost.name)

    @cached_property
    def scores(self) -> tuple[float, ...]:
        """The highest score up to each epoch of its curve."""
        sign = metric_of(self.trial.metric).sign
        means = [sign * m for m in map(mean, self.curve.values()) if not math.isnan(m)]
        return tuple(accumulate(means, max))


def mean(values: Sequence[float | None]) -> float:
    """The mean over seeds, see `round_mean`; NaN if a seed has diverged."""
    known = [value for value in values if value is not None]
    return round_mean(sum(known) / len(known)) if known and len(known) == len(values) else math.nan


def result_of(
    trial: Configuration, rows: Sequence[Mapping[str, Any]], history: Iterable[Mapping[str, Any]]
) -> Result:
    """The result of a trial, from its rows of the two tables; without a history its curve is empty."""
    metric = metric_of(trial.metric)
    curve, seconds = read_curve(trial, history)
    state = max((row["state"] for row in rows), key=STATES.index)
    return Result(
        trial,
        state,
        metric.sign * mean([row[metric.val] for row in rows]) if state == "ok" else None,
        curve,
        seconds,
        rows[0].get("pruned_by"),
        max((row["finished_at"] for row in rows if row.get("finished_at")), default=_EPOCH_START),
        tuple(
            SeedEnd(row["seed"], row["state"], row.get(metric.val), row.get("error"), row.get("seconds") or 0.0)
            for row in rows
        ),
    )


def read_curve(trial: Configuration, history: Iterable[Mapping[str, Any]]) -> tuple[Epochs, dict[int, float]]:
    """The `curve` and the `seconds` of a `Result`, from the rows of a trial in the table `history`."""
    metric = metric_of(trial.metric)
    curve: Epochs = {}
    seconds: dict[int, float] = {}
    places = {seed: place for place, seed in enumerate(trial.seeds)}
    for entry in sorted(history, key=lambda entry: entry["epoch"]):
        if entry["phase"] == "qat":
            epoch = entry["epoch"]
            values = curve.setdefault(epoch, [None] * len(places))  # None stays for a seed that diverged earlier
            values[places[entry["seed"]]] = entry[metric.val]
            seconds[epoch] = seconds.get(epoch, 0) + (entry["seconds"] or 0)
    return curve, seconds


def results(spec: Spec, trials: pa.Table, history: pa.Table) -> list[Result]:
    """The results of this sweep, in the order in which they finished; rows of other sweeps are left out.

    Args:
        spec: resolved.
        trials, history: the tables from `Store`.
    """
    curves: dict[str, list[dict[str, Any]]] = {}
    for entry in history.to_pylist():
        curves.setdefault(entry["trial_id"], []).append(entry)
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in trials.to_pylist():
        groups.setdefault(row["trial_id"], []).append(row)
    found = [
        result_of(trial, groups[trial_id], curves.get(trial_id, []))
        for trial_id, trial in members(spec, trials).items()
    ]
    return sorted(found, key=lambda result: (result.finished_at, result.trial.trial_id))


def fill_costs(spec: Spec, trials: pa.Table) -> pa.Table:
    """The table with the costs of the front in each row of this sweep; files of older versions lack later ones.

    Args:
        spec: resolved.
        trials: the table from `Store`.
    """
    lacking = [cost.name for cost in spec.costs if trials[cost.name].null_count]
    ours = members(spec, trials) if lacking else {}
    for name in lacking:
        known = {trial_id: find_known(trial, name) for trial_id, trial in ours.items()}
        values = [
            known.get(trial_id) if value is None else value
            for trial_id, value in zip(trials["trial_id"].to_pylist(), trials[name].to_pylist(), strict=True)
        ]
        place = trials.schema.get_field_index(name)
        trials = trials.set_column(place, trials.schema.field(name), pa.array(values, trials.schema.field(name).type))
    return trials


def members(spec: Spec, trials: pa.Table) -> dict[str, Configuration]:
    """trial_id -> the trial, for all trials of this sweep in a table; other rows belong to other sweeps.

    Args:
        spec: resolved.
        trials: the table from `Store`.
    """
    trials = complete_table(trials, trials_schema_of(trials))
    lists = [(name, "list") for name in ("seed", *AXIS_NAMES)]
    groups = trials.select(["trial_id", "seed", *AXIS_NAMES]).group_by("trial_id", use_threads=False).aggregate(lists)
    columns = [groups[f"{name}_list"].to_pylist() for name in ("seed", *AXIS_NAMES)]
    found = []
    for trial_id, seeds, *values in zip(groups["trial_id"].to_pylist(), *columns, strict=True):
        config = {axis: value[0] for axis, value in zip(AXIS_NAMES, values, strict=True)}
        trial = make_trial(spec, config, spec.seeds if sorted(seeds) == sorted(spec.seeds) else tuple(sorted(seeds)))
        # If the hash differs, the trial followed other rules, such as those of an older version of qdtune.
        if trial.trial_id == trial_id:
            found.append(trial)
    return {trial.trial_id: trial for trial in keep_possible(spec, found)}


_EPOCH_START = datetime.fromtimestamp(0, timezone.utc)
