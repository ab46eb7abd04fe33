"""What a run folder holds, as trials of a sweep: states, accuracies and curves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow as pa

from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import keep_possible, make_trial
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import STATES, TRIALS
from qdtune.store.parquet import completed

Epochs = dict[int, list[float | None]]  # QAT epoch from 1 -> a number per seed, None once it has diverged
Rows = dict[str, list[dict[str, Any]]]  # of the table `trials`, by trial_id


@dataclass(frozen=True)
class Result:
    """What came out of one trial.

    Attributes:
        trial: the configuration and its seeds.
        state: the worst of its seeds' states.
        accuracy: validation accuracy at the end, the mean of the seeds; None unless all are `ok`.
        curve: validation accuracies (0..1) after each QAT epoch.
        seconds: of all seeds together, for each QAT epoch.
        pruned_by: the trial that beat it, or the rule that stopped it.
        finished_at: when.
    """

    trial: Configuration
    state: str
    accuracy: float | None
    curve: Epochs
    seconds: dict[int, float]
    pruned_by: str | None
    finished_at: datetime

    @property
    def key(self) -> tuple[Any, ...]:
        """The axes of its configuration."""
        return self.trial.key

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were trained together."""
        return self.trial.seeds

    @property
    def size_bytes(self) -> int:
        """Of one replica."""
        return self.trial.sizes.size_bytes

    @property
    def best(self) -> float:
        """The highest mean accuracy of its curve; minus infinity where there is none."""
        return max((m for m in map(mean, self.curve.values()) if not math.isnan(m)), default=-math.inf)


def mean(accuracies: Sequence[float | None]) -> float:
    """The mean over seeds at 12 digits, so that equal ones tie; NaN where one has diverged."""
    known = [a for a in accuracies if a is not None]
    return round(sum(known) / len(known), 12) if known and len(known) == len(accuracies) else math.nan


def result_of(
    trial: Configuration, rows: Sequence[Mapping[str, Any]], history: Iterable[Mapping[str, Any]]
) -> Result:
    """The result in rows of the two tables, all of this trial; without a history its curve is empty."""
    curve: Epochs = {}
    seconds: dict[int, float] = {}
    places = {seed: place for place, seed in enumerate(trial.seeds)}
    for entry in sorted(history, key=lambda entry: entry["epoch"]):
        if entry["phase"] == "qat":
            epoch = entry["epoch"]
            values = curve.setdefault(epoch, [None] * len(places))  # None stays where it had diverged before
            values[places[entry["seed"]]] = entry["val_accuracy"]
            seconds[epoch] = seconds.get(epoch, 0) + (entry["seconds"] or 0)
    state = max((row["state"] for row in rows), key=STATES.index)
    return Result(
        trial,
        state,
        mean([row["val_accuracy"] for row in rows]) if state == "ok" else None,
        curve,
        seconds,
        rows[0].get("pruned_by"),
        max((row["finished_at"] for row in rows if row.get("finished_at")), default=_LONG_AGO),
    )


def results(spec: Spec, trials: pa.Table, history: pa.Table) -> list[Result]:
    """The results that this sweep could have made itself, in the order in which they came; others are left out.

    Args:
        spec: resolved.
        trials, history: as `Store` returns them.
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


def members(spec: Spec, trials: pa.Table) -> dict[str, Configuration]:
    """The trials of a table that this sweep could have run itself, by trial_id; the others belong to another one.

    Args:
        spec: resolved.
        trials: as `Store` returns them.
    """
    trials = completed(trials, TRIALS)
    lists = [(name, "list") for name in ("seed", *AXIS_NAMES)]
    groups = trials.select(["trial_id", "seed", *AXIS_NAMES]).group_by("trial_id", use_threads=False).aggregate(lists)
    columns = [groups[f"{name}_list"].to_pylist() for name in ("seed", *AXIS_NAMES)]
    found = []
    for trial_id, seeds, *values in zip(groups["trial_id"].to_pylist(), *columns, strict=True):
        config = {axis: value[0] for axis, value in zip(AXIS_NAMES, values, strict=True)}
        trial = make_trial(spec, config, spec.seeds if sorted(seeds) == sorted(spec.seeds) else tuple(sorted(seeds)))
        # Where the hash differs, it was trained by other rules: by an older version of qdtune, say.
        if trial.trial_id == trial_id:
            found.append(trial)
    return {trial.trial_id: trial for trial in keep_possible(spec, found)}


_LONG_AGO = datetime.fromtimestamp(0, timezone.utc)
