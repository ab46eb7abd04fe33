"""The metrics of a running sweep for Prometheus, through Ray's own metrics; `docker/grafana` draws them.

The driver reports everything, because the metrics of a worker vanish with the worker. No tag names a trial, because
Prometheus keeps a time series for every value of a tag. Ray puts `ray_` before each name, and `_total` after the name
of a counter.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ray.util.metrics import Counter, Gauge

from qdtune.pareto import hypervolume
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import DEFAULT_COSTS, Objective, untrained_value, worst_log2
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.columns import STATES
from qdtune.store.pareto_table import table_front
from qdtune.store.tables import Table, rows_known

AGAIN_S = 4.0  # Ray forgets a gauge that is not set again within ten seconds
BEST, HYPERVOLUME = f"qdtune_best_{ACCURACY.val}", "qdtune_hypervolume"
# Those of a sweep that is judged by accuracy.
GAUGES: dict[str, tuple[Any, str, tuple[str, ...]]] = {  # name: kind, meaning, further tags
    "qdtune_trials": (Gauge, "Trials by state: as they ended, running or waiting", ("state",)),
    "qdtune_epochs": (Counter, "Epochs trained, in the float warm-up and in QAT", ()),
    "qdtune_replica_epochs": (Counter, "The same, times the replicas that trained together", ()),
    BEST: (Gauge, "Highest mean validation accuracy (0..1) by weight bits", ("weight_bits",)),
    HYPERVOLUME: (Gauge, "Of the front: accuracy above chance times halvings below float32's bytes", ()),
    "qdtune_gpu_share": (Gauge, "Share of a GPU (0..1) that each trial is granted", ()),
    "qdtune_gpu_memory_peak": (Gauge, "Largest share of a GPU's memory (0..1) that torch held for a trial", ()),
}


def list_gauges(
    metric: Metric, has_reference: bool, costs: Sequence[Objective] = DEFAULT_COSTS
) -> dict[str, tuple[Any, str, tuple[str, ...]]]:
    """The metrics of a sweep that is judged by `metric`: the best value has the name of its column.

    Args:
        metric: that judges.
        has_reference: whether it has a reference value, without which there is no hypervolume.
        costs: of the front.
    """
    found = GAUGES if has_reference else {name: entry for name, entry in GAUGES.items() if name != HYPERVOLUME}
    words = {}
    above = "accuracy above chance" if metric is ACCURACY else f"{metric.name} above that of an untrained network"
    if tuple(costs) != DEFAULT_COSTS:
        heads = " times ".join(f"halvings of {one.head}" for one in costs)
        words[HYPERVOLUME] = f"Of the front: {above} times {heads}"
    elif metric is not ACCURACY:
        words[HYPERVOLUME] = f"Of the front: {above} times halvings below float32's bytes"
    if metric is ACCURACY:
        return {name: (kind, words.get(name, what), tags) for name, (kind, what, tags) in found.items()}
    words[BEST] = f"Best mean validation {metric.name} by weight bits"
    renamed = {BEST: f"qdtune_best_{metric.val}"}
    return {
        renamed.get(name, name): (kind, words.get(name, what), tags) for name, (kind, what, tags) in found.items()
    }


class SweepMetrics:
    """The metrics of one sweep; Ray must be running. The metrics of a GPU appear only if there is a GPU.

    The reference point of the hypervolume stays the same during the sweep: the metric of an untrained network, such
    as an accuracy of 1 / classes, and log2 of the bytes of the largest planned network in float32. Other costs end
    at twice the largest planned value.

    Args:
        spec: resolved.
        planned: the configurations of the plan; if the method searches, a sample of them.
    """

    def __init__(self, spec: Spec, planned: Sequence[Configuration]) -> None:
        assert spec.data.info is not None
        worst = [worst_log2(cost, planned) for cost in spec.costs]
        self.costs = spec.costs
        self.metric, untrained = spec.metric, untrained_value(spec.metric, spec.data.info)
        self.corner = None if untrained is None else (-self.metric.sign * untrained, *worst)
        self.metrics = list_gauges(self.metric, untrained is not None, spec.costs)
        self.gpu_peak = 0.0
        self.said_at = 0.0
        self._gauges: dict[tuple[str, str], float] = {}  # the latest values, by name and tag
        self._of = {name: kind(name, what, ("sweep", *tags)) for name, (kind, what, tags) in self.metrics.items()}
        for metric in self._of.values():
            metric.set_default_tags({"sweep": spec.name})

    def again(self) -> None:
        """Sets the gauges again if it is time for that; the recorder calls it in every step."""
        if time.monotonic() - self.said_at >= AGAIN_S:
            self.said_at = time.monotonic()
            for (name, tag), value in self._gauges.items():
                self._say(name, value, tag)

    def _say(self, name: str, value: float, tag: str = "") -> None:
        self._gauges[name, tag] = value
        self._of[name].set(value, dict.fromkeys(self.metrics[name][2], tag))

    def granted(self, gpu: float) -> None:
        """Notes the share of a GPU that each trial gets; 0 means no GPU."""
        if gpu:
            self._say("qdtune_gpu_share", gpu)

    def trained(self, report: dict[str, Any]) -> None:
        """Notes an epoch of a trial from its report; a report with epoch 0 or none is ignored."""
        if not report.get("epoch"):
            return
        epoch = (report["phase"], report["epoch"])
        replicas = sum((entry["phase"], entry["epoch"]) == epoch for entry in report["history"])
        self._of["qdtune_epochs"].inc()
        if replicas:  # Ray's counters take no 0
            self._of["qdtune_replica_epochs"].inc(replicas)
        if report.get("gpu_memory_peak", 0.0) > self.gpu_peak:
            self.gpu_peak = report["gpu_memory_peak"]
            self._say("qdtune_gpu_memory_peak", self.gpu_peak)

    def moved(self, running: int, left: int) -> None:
        """Notes how many of the trials that are left run."""
        self._say("qdtune_trials", running, "running")
        self._say("qdtune_trials", left - running, "waiting")

    def stand(self, states: Iterable[str], table: Table) -> None:
        """Notes the states of all trials that have ended, and the Pareto table."""
        ended = list(states)
        for state in STATES:
            self._say("qdtune_trials", ended.count(state), state)
        ranked = rows_known(table, "pareto_rank")
        column, best = self.metric.val, "max" if self.metric.sign > 0 else "min"
        for row in ranked.group_by("weight_bits").aggregate([(column, best)]).to_pylist():
            self._say(f"qdtune_best_{column}", row[f"{column}_{best}"], str(row["weight_bits"]))
        if self.corner is None:
            return
        front = table_front(table)
        costs = [-self.metric.sign * front[column].to_numpy()]
        costs += [np.array([one.log2(value) for value in front[one.name].to_pylist()]) for one in self.costs]
        self._say(HYPERVOLUME, hypervolume(np.column_stack(costs), self.corner))
