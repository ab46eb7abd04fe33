"""Pairs of configurations that differ in one axis alone, and the obstacles to comparing the two.

Two sides match if every other axis, the data set and the model are equal, and their sizes differ by at most
`SIZES_APART`. An axis without an effect is ignored (`axes.decisive_axes`), such as the activation of a network whose
layers have one factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any

from qdtune.datasets.known import find_dataset
from qdtune.spec.axes import AXIS_NAMES, HIDDEN, OUTLINED, decisive_axes
from qdtune.spec.objectives import COSTS, SIZE_BYTES
from qdtune.spec.structure import mlp_structure
from qdtune.spec.tasks import AUTOENCODER, CLASSIFICATION, Metric
from qdtune.store.columns import FINAL, STATES, metric_in, trials_schema_of
from qdtune.store.parquet import complete_table
from qdtune.store.tables import Table, rows_among, rows_equal

# Shares of the smaller size. A pair beyond the first is refused; a pair between the two gets a remark.
SIZES_APART, SIZES_EQUAL = 0.05, 0.01
KEYS = (*AXIS_NAMES, "dataset", "model")
_COSTS = tuple(one.name for one in COSTS)
_COLUMNS = (*KEYS, "seed", "trial_id", "state", *_COSTS, "inner_dims", "error")


@dataclass(frozen=True)
class Side:
    """One configuration with all its seeds: one side of a pair.

    Attributes:
        key: the values of `KEYS`; None for an axis without an effect.
        state: the worst state of its seeds, as in `pareto_table.aggregate`.
        failure: how training failed: a seed diverged, or its warm-up ended at chance; None if training did not fail.
        costs: those that are known, by name.
        inner_dims: widths between the factors of each layer.
        measured: seed -> the metric on the validation split; of the seeds that ended `ok`.
        trial_ids: seed -> trial_id of its row.
        metric: of the numbers in `measured`.
    """

    key: dict[str, Any]
    state: str
    failure: str | None
    costs: Mapping[str, int]
    inner_dims: list[list[int]]
    measured: dict[int, float]
    trial_ids: dict[int, str]
    metric: Metric

    @property
    def size(self) -> int | None:
        """Its bytes; None if unknown."""
        return self.costs.get(SIZE_BYTES.name)

    def values(self, names: Iterable[str]) -> tuple[Any, ...]:
        """The values of these keys."""
        return tuple(self.key[name] for name in names)

    def has_seeds(self, seeds: Iterable[int]) -> bool:
        """Whether it has the metric of all these seeds."""
        return self.measured.keys() >= set(seeds)

    def has_failed(self, seeds: Iterable[int]) -> bool:
        """Whether any of these seeds was trained and has no metric."""
        return any(seed in self.trial_ids and seed not in self.measured for seed in seeds)

    def mean(self, seeds: Sequence[int]) -> float:
        """The mean of the metric over these seeds, all of which it has."""
        return math.fsum(self.measured[seed] for seed in seeds) / len(seeds)

    @property
    def outline(self) -> tuple[Any, ...]:
        """Its layers without their widths."""
        return tuple(axis.outline(self.key[axis.name]) for axis in OUTLINED if axis.outline)

    def distance(self, other: Side) -> tuple[float, int, float, int]:
        """Orders sides of this outline: by how far their sizes are, and equal sizes by how many widths differ."""
        apart, size = abs((other.size or 0) - (self.size or 0)), other.size or 0
        others = sum(self.key[axis.name] != other.key[axis.name] for axis in OUTLINED)
        return (apart if apart > SIZES_EQUAL * size else 0, others, apart, size)

    @property
    def head_rank(self) -> int | None:
        """The highest rank that the last layer can have; None if unknown, as for a model of the user."""
        widths = list(self.inner_dims[-1]) if self.inner_dims else []
        info = find_dataset(self.key["dataset"])
        if info and self.key["model"] in (None, "mlp") and self.key["hidden"]:
            hidden = HIDDEN.of_cell(self.key["hidden"])
            task = AUTOENCODER if self.metric in AUTOENCODER.metrics else CLASSIFICATION  # no other task has it
            data = info.info.averaged(self.key["resolution"])
            widths += mlp_structure(data.inputs, hidden, task.outputs(data)).layers[-1][:2]
        return min(widths, default=None)


def find_sides(trials: Table) -> list[Side]:
    """The configurations of a table, in an order that does not depend on the order of its rows.

    Args:
        trials: one row per seed, as `columns.trials_schema`; absent columns count as null.
    """
    return make_sides(list_rows(trials), metric_in(trials))


def list_rows(trials: Table) -> list[dict[str, Any]]:
    """The rows of a table, with the columns that `make_sides` reads."""
    return complete_table(trials, trials_schema_of(trials)).select([*_COLUMNS, metric_in(trials).val]).to_pylist()


def make_sides(rows: Iterable[Mapping[str, Any]], metric: Metric) -> list[Side]:
    """As `find_sides`, from rows with the same columns; `inner_dims` and costs may be missing."""
    ordered = sorted(rows, key=lambda row: [(row[name] is None, row[name]) for name in (*KEYS, "seed", "trial_id")])
    found: dict[tuple[Any, ...], Side] = {}
    for _, group in groupby(ordered, key=lambda row: tuple(row[name] for name in KEYS)):
        side = _make_side(list(group), metric)
        twin = found.setdefault(side.values(KEYS), side)  # the same network under other values
        if (side.state == "ok", len(side.measured)) > (twin.state == "ok", len(twin.measured)):
            found[side.values(KEYS)] = side
    return list(found.values())


def _make_side(rows: Sequence[Mapping[str, Any]], metric: Metric) -> Side:
    first = rows[0]
    key = decisive_axes({name: first[name] for name in KEYS})
    states = [row["state"] for row in rows]
    chance = any(row["error"] and row["state"] in ("ok", "pruned") for row in rows)
    measured = {
        row["seed"]: row[metric.val]
        for row in rows
        if row["state"] == "ok" and row[metric.val] is not None and math.isfinite(row[metric.val])
    }
    return Side(
        key,
        state=max([state for state in states if state in FINAL] or states, key=STATES.index),
        failure="diverged" if "diverged" in states else "had a warm-up that ended at chance" if chance else None,
        costs={name: value for name in _COSTS if (value := first.get(name)) is not None},
        inner_dims=first.get("inner_dims") or [],
        measured=measured,
        trial_ids={row["seed"]: row["trial_id"] for row in rows},
        metric=metric,
    )


@dataclass
class Baselines:
    """The sides that may be baselines, indexed by any of their keys.

    Attributes:
        sides: the sides.
    """

    sides: Sequence[Side]
    _indexes: dict[tuple[str, ...], dict[tuple[Any, ...], Side]] = field(default_factory=dict)

    def index_by(self, names: tuple[str, ...]) -> dict[tuple[Any, ...], Side]:
        """The values of these keys -> a side; the last one if several sides have them."""
        if names not in self._indexes:
            self._indexes[names] = {side.values(names): side for side in self.sides}
        return self._indexes[names]

    def find_pairs(self, others: Sequence[Side], names: tuple[str, ...]) -> list[tuple[Side, Side]]:
        """The pairs of each of `others` with the baseline that has equal values of these keys."""
        index = self.index_by(names)
        return [(side, index[side.values(names)]) for side in others if side.values(names) in index]

    def find_pairs_of_equal_size(self, others: Sequence[Side], names: tuple[str, ...]) -> list[tuple[Side, Side]]:
        """The pairs of `find_pairs`; if sizes are too far apart or a baseline is missing, widths may differ.

        Such a side gets the baseline of the nearest size with the same layers but for their widths
        (`Axis.outline`), if its size is near enough. Depths are compared at equal bytes, and at few bits the
        parameters between the factors take many.
        """
        widths = {axis.name for axis in OUTLINED}
        free, index = tuple(name for name in names if name not in widths), self.index_by(names)
        similar: dict[tuple[Any, ...], list[Side]] = {}
        for one in self.sides:
            similar.setdefault((*one.values(free), one.outline), []).append(one)
        found = []
        for side in others:
            best, size = index.get(side.values(names)), side.size
            if size and (best is None or find_obstacle(side, best) == "size"):
                candidates = similar.get((*side.values(free), side.outline), [])
                nearest = min((one for one in candidates if one.size), key=side.distance, default=None)
                if nearest and find_obstacle(side, nearest) != "size":
                    best = nearest
            found += [(side, best)] if best else []
        return found

    def find_confounders(self, others: Sequence[Side], names: tuple[str, ...]) -> tuple[tuple[str, ...], Side, Side]:
        """The fewest keys in which `others` differ from every baseline, and two sides that differ in these."""
        for r in range(1, len(names) + 1):
            for differing in combinations(names, r):
                if pairs := self.find_pairs(others, tuple(name for name in names if name not in differing)):
                    return differing, *pairs[0]
        raise AssertionError("without any key all sides match")


def find_obstacle(one: Side, other: Side) -> str | None:
    """Why the two sides of a pair are not compared: `size`, `failed`, `unfinished` or `pruned`; None if they are."""
    if one.size and other.size and abs(one.size - other.size) > SIZES_APART * min(one.size, other.size):
        return "size"
    return find_failure(one, other)


def find_failure(one: Side, other: Side) -> str | None:
    """As `find_obstacle`, whatever the sizes are."""
    if one.failure or other.failure:
        return "failed"
    if {one.state, other.state} - FINAL:
        return "unfinished"
    return "pruned" if "pruned" in (one.state, other.state) else None


def mean_differences(pairs: Sequence[tuple[Side, Side]]) -> dict[int, float]:
    """Seed -> the difference in the metric, a mean over pairs; of the seeds that every side has.

    A seed that some pairs lack is left out, because its mean would be over other configurations.
    """
    shared = set.intersection(*[one.measured.keys() & other.measured.keys() for one, other in pairs])
    return {s: math.fsum(a.measured[s] - b.measured[s] for a, b in pairs) / len(pairs) for s in sorted(shared)}


def curve_difference(pairs: Sequence[tuple[Side, Side]], history: Table) -> tuple[int, float] | None:
    """The last QAT epoch that all sides have, and the mean difference at it; None if they share no epoch.

    Args:
        pairs: see `Baselines.find_pairs`.
        history: one row per seed and epoch, as `columns.history_schema`.
    """
    ids = {i for pair in pairs for side in pair for i in side.trial_ids.values()}
    rows = rows_equal(rows_among(history, "trial_id", ids), "phase", "qat")
    curves: dict[tuple[str, int], dict[int, float]] = {}
    columns = [rows[name].to_pylist() for name in ("trial_id", "seed", "epoch", metric_in(history).val)]
    for trial_id, seed, epoch, value in zip(*columns, strict=True):
        if value is not None and math.isfinite(value):
            curves.setdefault((trial_id, seed), {})[epoch] = value
    seeds = sorted(set.intersection(*[set(side.trial_ids) for pair in pairs for side in pair]))
    both = [[curves.get((side.trial_ids[s], s), {}) for side in pair] for pair in pairs for s in seeds]
    if not both or not (epochs := set.intersection(*[set(curve) for two in both for curve in two])):
        return None
    last = max(epochs)
    return last, math.fsum(one[last] - other[last] for one, other in both) / len(both)
