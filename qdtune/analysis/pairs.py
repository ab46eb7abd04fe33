"""Pairs of configurations that differ in one axis alone, and what forbids to compare the two.

Two sides match if every other axis, the data set and the model are the same, and their sizes within `SIZES_APART`.
An axis that changes nothing counts for nothing (`names.decisive`), such as the activation of a network whose layers
have one factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any

from qdtune.datasets.known import find_dataset
from qdtune.spec.axes import AXIS_NAMES, decisive_axes
from qdtune.spec.sizes import mlp_structure
from qdtune.store.columns import FINAL, STATES, TRIALS
from qdtune.store.parquet import completed
from qdtune.store.tables import Table, rows_among, rows_equal

SIZES_APART, SIZES_EQUAL = 0.05, 0.01  # shares of the smaller: beyond is refused; what lies between is said
KEYS = (*AXIS_NAMES, "dataset", "model")
_READ = (*KEYS, "seed", "trial_id", "state", "val_accuracy", "size_bytes", "inner_dims", "error")


@dataclass(frozen=True)
class Side:
    """One configuration, all seeds of it.

    Attributes:
        key: the values of `KEYS`; None for an axis that changes nothing.
        state: the worst of its seeds'; as `pareto_table.aggregate` has it.
        failure: how training failed, if it did: a seed diverged, or started from a warm-up that ended at chance.
        size: bytes; None where not known.
        inner_dims: widths between the factors of each layer.
        accuracies: of the validation split, 0..1, by seed; those of seeds that ended `ok`.
        trial_ids: of its rows, by seed.
    """

    key: dict[str, Any]
    state: str
    failure: str | None
    size: int | None
    inner_dims: list[list[int]]
    accuracies: dict[int, float]
    trial_ids: dict[int, str]

    def values(self, names: Iterable[str]) -> tuple[Any, ...]:
        """Its values of these keys."""
        return tuple(self.key[name] for name in names)

    @property
    def layers(self) -> int:
        """How many hidden layers there are."""
        return str(self.key["hidden"]).count("-") + 1

    @property
    def head_rank(self) -> int | None:
        """The highest rank that the last layer can have; None where not known (of a model of the user's own)."""
        widths = list(self.inner_dims[-1]) if self.inner_dims else []
        info = find_dataset(self.key["dataset"])
        if info and self.key["model"] in (None, "mlp") and self.key["hidden"]:
            hidden = [int(width) for width in self.key["hidden"].split("-")]
            widths += mlp_structure(info.inputs, hidden, info.classes).layers[-1][:2]
        return min(widths, default=None)


def sides(trials: Table) -> list[Side]:
    """The configurations of a table in an order of their own, whatever that of its rows.

    Args:
        trials: one row per seed, as `columns.TRIALS`; a column that is absent is null.
    """
    table = completed(trials, TRIALS).select(_READ)
    table = table.sort_by([(name, "ascending") for name in (*KEYS, "seed", "trial_id")])
    found: dict[tuple[Any, ...], Side] = {}
    for _, group in groupby(table.to_pylist(), key=lambda row: tuple(row[name] for name in KEYS)):
        side = _side(list(group))
        twin = found.setdefault(side.values(KEYS), side)  # another name of the same network
        if (side.state == "ok", len(side.accuracies)) > (twin.state == "ok", len(twin.accuracies)):
            found[side.values(KEYS)] = side
    return list(found.values())


def _side(rows: Sequence[dict[str, Any]]) -> Side:
    first = rows[0]
    key = decisive_axes({name: first[name] for name in KEYS})
    states = [row["state"] for row in rows]
    chance = any(row["error"] and row["state"] in ("ok", "pruned") for row in rows)
    accuracies = {
        row["seed"]: row["val_accuracy"]
        for row in rows
        if row["state"] == "ok" and row["val_accuracy"] is not None and math.isfinite(row["val_accuracy"])
    }
    return Side(
        key,
        state=max([state for state in states if state in FINAL] or states, key=STATES.index),
        failure="diverged" if "diverged" in states else "had a warm-up that ended at chance" if chance else None,
        size=first["size_bytes"],
        inner_dims=first["inner_dims"] or [],
        accuracies=accuracies,
        trial_ids={row["seed"]: row["trial_id"] for row in rows},
    )


@dataclass
class Baselines:
    """The sides that may be a baseline, found by any of their keys."""

    sides: Sequence[Side]
    _by: dict[tuple[str, ...], dict[tuple[Any, ...], Side]] = field(default_factory=dict)

    def by(self, names: tuple[str, ...]) -> dict[tuple[Any, ...], Side]:
        """The sides by their values of these keys; of several one."""
        if names not in self._by:
            self._by[names] = {side.values(names): side for side in self.sides}
        return self._by[names]

    def pairs(self, others: Sequence[Side], names: tuple[str, ...]) -> list[tuple[Side, Side]]:
        """Each of `others` with the baseline that has the same values of these keys."""
        index = self.by(names)
        return [(side, index[side.values(names)]) for side in others if side.values(names) in index]

    def sized(self, others: Sequence[Side], names: tuple[str, ...]) -> list[tuple[Side, Side]]:
        """As `pairs`, but at equal bytes: sizes too far apart, or no such baseline, and hidden widths may differ.

        The side then has the baseline with as many hidden layers whose size is the nearest, if that is near enough:
        what stands between the factors weighs at few bits, and depths are to be compared for the same bytes.
        """
        free, index = tuple(name for name in names if name != "hidden"), self.by(names)
        others_of: dict[tuple[Any, ...], list[Side]] = {}
        for one in self.sides:
            others_of.setdefault((*one.values(free), one.layers), []).append(one)
        found = []
        for side in others:
            best, size = index.get(side.values(names)), side.size
            if size and (best is None or obstacle(side, best) == "size"):
                alike = others_of.get((*side.values(free), side.layers), [])
                choice = [(abs(one.size - size), one.size, one) for one in alike if one.size]
                nearest = min(choice, key=lambda entry: entry[:2], default=None)
                if nearest and obstacle(side, nearest[-1]) != "size":
                    best = nearest[-1]
            found += [(side, best)] if best else []
        return found

    def confounder(self, others: Sequence[Side], names: tuple[str, ...]) -> tuple[tuple[str, ...], Side, Side]:
        """The fewest keys that stand between `others` and any baseline, and two sides that differ in these."""
        for r in range(1, len(names) + 1):
            for apart in combinations(names, r):
                if pairs := self.pairs(others, tuple(name for name in names if name not in apart)):
                    return apart, *pairs[0]
        raise AssertionError("without any key all sides match")


def obstacle(one: Side, other: Side) -> str | None:
    """Why the accuracies of a pair are not compared: `size`, `failed`, `unfinished` or `pruned`; None if they may."""
    if one.size and other.size and abs(one.size - other.size) > SIZES_APART * min(one.size, other.size):
        return "size"
    if one.failure or other.failure:
        return "failed"
    if {one.state, other.state} - FINAL:
        return "unfinished"
    return "pruned" if "pruned" in (one.state, other.state) else None


def differences(pairs: Sequence[tuple[Side, Side]]) -> dict[int, float]:
    """The mean over pairs of the difference in accuracy, by seed; of the seeds that every side has.

    A seed that some pairs lack would bring another mix of configurations, not one more replicate.
    """
    shared = set.intersection(*[one.accuracies.keys() & other.accuracies.keys() for one, other in pairs])
    return {s: math.fsum(a.accuracies[s] - b.accuracies[s] for a, b in pairs) / len(pairs) for s in sorted(shared)}


def curve_difference(pairs: Sequence[tuple[Side, Side]], history: Table) -> tuple[int, float] | None:
    """The last QAT epoch that all sides have, and the mean difference of the accuracies there; None without any.

    Args:
        pairs: as `Baselines.pairs` gives them.
        history: one row per seed and epoch, as `columns.HISTORY`.
    """
    ids = {i for pair in pairs for side in pair for i in side.trial_ids.values()}
    rows = rows_equal(rows_among(history, "trial_id", ids), "phase", "qat")
    curves: dict[tuple[str, int], dict[int, float]] = {}
    columns = [rows[name].to_pylist() for name in ("trial_id", "seed", "epoch", "val_accuracy")]
    for trial_id, seed, epoch, accuracy in zip(*columns, strict=True):
        if accuracy is not None and math.isfinite(accuracy):
            curves.setdefault((trial_id, seed), {})[epoch] = accuracy
    seeds = sorted(set.intersection(*[set(side.trial_ids) for pair in pairs for side in pair]))
    both = [[curves.get((side.trial_ids[s], s), {}) for side in pair] for pair in pairs for s in seeds]
    if not both or not (epochs := set.intersection(*[set(curve) for two in both for curve in two])):
        return None
    last = max(epochs)
    return last, math.fsum(one[last] - other[last] for one, other in both) / len(both)
