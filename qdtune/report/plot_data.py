"""What is drawn of a run: a row per configuration, with its metric as it is printed and its learning curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from qdtune.pareto import front, round_mean
from qdtune.spec.axes import AXIS_NAMES, axis_of
from qdtune.spec.axis import Axis
from qdtune.spec.metric_text import format_metric
from qdtune.spec.objectives import SIZE_BYTES, Objective, front_of
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import Metric
from qdtune.store.columns import costs_in, metric_in
from qdtune.store.tables import Table, mean_curves, rows_equal

MOST_EPOCHS = 24  # of a curve that are kept: 10,000 curves have to fit into one page
MOST_FAINT = 300  # curves drawn behind those of the front: more would be a black area
Row = dict[str, Any]


class Recorded(Protocol):
    """A `Run`, as far as it is drawn."""

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def spec(self) -> Spec: ...
    @property
    def trials(self) -> Table: ...
    @property
    def history(self) -> Table: ...
    @property
    def pareto(self) -> Table: ...


@dataclass(frozen=True)
class Sheet:
    """A run, ready to be drawn.

    Attributes:
        run: it.
        rows: one per configuration: `id` from 0, `name`, the axes that vary, `size` in bytes, other costs of the
            front (`field_of`), `val` and `test`
            (the metric; of what was stopped early the value it had then, None where there is none) with `_low` and
            `_high`, `val_text` and `test_text` as printed, `trial` (its trial_id), `n` seeds, `state`, `front`,
            `p_front`, `by` and `by_id` (what beat it, or the rule that stopped it), `curve` (the metric at `epochs`),
            `last` (epoch), `drawn` (whether its curve is in the figure of all curves).
        epochs: at which the curves are known, from 1, the warm-up's first.
        warmup: epochs of the warm-up.
        varying: axes of more than one value, in the order of `AXIS_NAMES`.
    """

    run: Recorded
    rows: list[Row]
    epochs: list[int]
    warmup: int
    varying: tuple[str, ...]

    @property
    def metric(self) -> Metric:
        """What is drawn."""
        return metric_in(self.run.pareto)

    @property
    def costs(self) -> tuple[Objective, ...]:
        """The costs that the front is over."""
        return costs_in(self.run.pareto)

    @property
    def drawable(self) -> list[Row]:
        """The rows that have a value on the validation split."""
        return [row for row in self.rows if row["val"] is not None]

    @property
    def front(self) -> list[Row]:
        """The rows on the front, by ascending costs."""
        fields = (*map(field_of, self.costs), "id")
        return sorted((row for row in self.rows if row["front"]), key=lambda row: [row[field] for field in fields])

    def best_up_to(self, cost: Objective) -> list[Row]:
        """The rows of a front over one cost alone, by ascending cost: no other one is as good and as cheap."""
        if self.costs == (cost,):
            return self.front
        ranked = [(i, row) for i, row in enumerate(self.run.pareto.to_pylist()) if row["pareto_rank"]]
        values = [[one.sign * row[one.name] for one in front_of(self.metric, [cost])] for _, row in ranked]
        is_best = front(np.array(values).reshape(-1, 2))
        ids = {i for (i, _), best in zip(ranked, is_best, strict=True) if best}
        best_rows = [row for row in self.rows if row["id"] in ids]
        return sorted(best_rows, key=lambda row: (row[field_of(cost)], row["id"]))

    def values(self, axis: str) -> list[Any]:
        """The values of an axis that occur, ascending, None first."""
        return sorted({row[axis] for row in self.rows}, key=lambda value: (value is not None, value))


def field_of(cost: Objective) -> str:
    """The name of a cost in a row that is drawn."""
    return "size" if cost is SIZE_BYTES else cost.name


def sheet(run: Recorded) -> Sheet:
    """The sheet of a run, its rows in the order of `run.pareto`."""
    table, metric = run.pareto.to_pylist(), metric_in(run.pareto)
    varying = tuple(axis for axis in AXIS_NAMES if len({row[axis] for row in table}) > 1)
    names = [label(row, varying or ("depth", "weight_bits", "activation")) for row in table]
    own = _owners(run, table)
    epochs, curves = _curves(run, own, len(table))
    stopped = _stopped(run, own)
    rows = []
    for i, row in enumerate(table):
        by = own.get(row["pruned_by"] or "")
        val, n = (row[metric.val], row["n_seeds"]) if row["n_seeds"] else stopped.get(i, (None, 0))
        known = [k for k, value in enumerate(curves[i]) if value is not None]
        drawn = {axis: row[axis] for axis in varying}
        low, high = row[f"{metric.val}_low"], row[f"{metric.val}_high"]
        test, test_low, test_high = (row[f"{metric.test}{part}"] for part in ("", "_low", "_high"))
        drawn |= {"id": i, "name": names[i], "size": row["size_bytes"], "val": _short(metric, val)}
        drawn |= {cost.name: row[cost.name] for cost in costs_in(run.pareto) if cost is not SIZE_BYTES}
        drawn |= {"low": _short(metric, low), "high": _short(metric, high)}
        drawn |= {"test": _short(metric, test)}
        drawn |= {"test_low": _short(metric, test_low), "test_high": _short(metric, test_high)}
        drawn |= {
            "val_text": format_metric(metric, val, low, high),
            "test_text": format_metric(metric, test, test_low, test_high),
            "trial": row["trial_id"],
            "n": n,
            "state": row["state"],
            "front": bool(row["is_pareto"]),
            "p_front": "-" if row["p_front"] is None else f"{row['p_front']:.2f}",
            "by": names[by] if by is not None else row["pruned_by"] or "-",
            "by_id": by,
            "curve": curves[i][: known[-1] + 1] if known else [],
            "last": epochs[known[-1]] if known else None,
        }
        rows.append(drawn)
    others = [row["id"] for row in rows if not row["front"] and row["curve"]]
    step = max(1, -(-len(others) // MOST_FAINT))
    faint = set(others[::step])
    for row in rows:
        row["drawn"] = row["front"] or row["id"] in faint
    return Sheet(run, rows, epochs, run.spec.train.warmup.epochs, varying)


def label(row: Row, varying: tuple[str, ...]) -> str:
    """A configuration in a few words, such as `d2 w1 relu`, of the axes that vary."""
    parts = []
    for axis in varying:
        if row[axis] is None and axis_of(axis).may_be_null:
            continue  # as it would be without the axis
        value = "float" if row[axis] is None else row[axis]
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(_tagged(axis_of(axis), text))
    return " ".join(parts)


def _tagged(axis: Axis, text: str) -> str:
    # The first axes are known by their letters, those that came later by their names.
    return axis.tag.format(text) if axis.tag and not (axis.is_new or axis.home) else f"{axis.name} {text}"


def _short(metric: Metric, value: float | None) -> float | None:
    """At four digits after the point, or five in all, which is finer than a figure can show."""
    if value is None or not np.isfinite(value):
        return None
    return round(value, 4) if metric.is_fraction else float(f"{value:.5g}")


def _owners(run: Recorded, table: list[Row]) -> dict[str, int]:
    """trial_id -> the index of its configuration; more seeds of one are trials of their own."""
    keys = ("dataset", *AXIS_NAMES)
    places = {tuple(row[key] for key in keys): i for i, row in enumerate(table)}
    firsts = run.trials.group_by("trial_id", use_threads=False).aggregate([(key, "first") for key in keys])
    columns = [firsts[f"{key}_first"].to_pylist() for key in keys]
    ids = firsts["trial_id"].to_pylist()
    return {
        trial_id: places[key] for trial_id, key in zip(ids, zip(*columns, strict=True), strict=True) if key in places
    }


def _stopped(run: Recorded, own: dict[str, int]) -> dict[int, tuple[float, int]]:
    """index -> mean metric at which a configuration was stopped early, and of how many seeds."""
    name = metric_in(run.trials).val
    rows = rows_equal(run.trials, "state", "pruned")
    rows = rows.group_by("trial_id", use_threads=False).aggregate([(name, "mean"), (name, "count")])
    columns = [rows[each].to_pylist() for each in ("trial_id", f"{name}_mean", f"{name}_count")]
    return {
        own[trial_id]: (round_mean(mean), n)
        for trial_id, mean, n in zip(*columns, strict=True)
        if trial_id in own and mean is not None and np.isfinite(mean)
    }


def _curves(run: Recorded, own: dict[str, int], count: int) -> tuple[list[int], list[list[float | None]]]:
    """Epochs, at most `MOST_EPOCHS`, and for each configuration its mean metric over seeds at each, or None."""
    metric = metric_in(run.history)
    means = mean_curves(run.history, own, run.spec.train.warmup.epochs)
    every = sorted(set(means["epoch"].to_pylist()))
    chosen: Any = (
        np.unique(np.linspace(0, len(every) - 1, min(len(every), MOST_EPOCHS)).round().astype(int)) if every else []
    )
    epochs = [every[k] for k in chosen]
    column = {epoch: k for k, epoch in enumerate(epochs)}
    curves: list[list[float | None]] = [[None] * len(epochs) for _ in range(count)]
    for place_of, epoch, val in zip(
        *(means[name].to_pylist() for name in ("place", "epoch", "val_mean")), strict=True
    ):
        if place_of is not None and epoch in column:
            curves[place_of][column[epoch]] = _short(metric, val)
    return epochs, curves
