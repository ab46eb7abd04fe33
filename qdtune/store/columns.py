"""The columns of the tables in a run folder.

The columns of what is judged are named by the metric of the run, such as `val_accuracy` or `val_mae`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import pyarrow as pa

from qdtune.spec.axes import AXES
from qdtune.spec.objectives import DEFAULT_COSTS, KNOWN_BEFORE, OBJECTIVES, Objective, costs_of
from qdtune.spec.tasks import ACCURACY, METRICS, Metric

# A new column raises the version. A file of this version has all columns; an absent column of an older file reads as
# null, or as `Axis.before` if it is an axis. From the first version on, axes and objectives say when they came.
FIRST_VERSION = 5
RELEASE_VERSION = 6  # the first with the columns of releases
SCHEMA_VERSION = max(FIRST_VERSION, RELEASE_VERSION, *(one.since for one in (*AXES, *OBJECTIVES)))
STATES = ("ok", "pruned", "diverged", "timeout", "oom", "failed")  # from best to worst
# A trial in another state runs again on the next launch, because its state may differ then.
FINAL = frozenset({"ok", "pruned", "diverged"})
COSTS_KEY = "qdtune.costs"  # of the metadata of a Pareto table whose front is not over the default costs
_ARROW = {"int32": pa.int32(), "float64": pa.float64(), "string": pa.string()}


class Column(NamedTuple):
    """A column of a table: its name, its Arrow type, and a few words for the docs."""

    name: str
    kind: pa.DataType
    text: str


def _schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([(column.name, column.kind) for column in columns])


_AXES = [Column(axis.name, _ARROW[axis.column], axis.text) for axis in AXES]
_LATER = tuple(one.name for one in KNOWN_BEFORE if one.since > FIRST_VERSION)
# The columns in which all seeds of a configuration agree.
_RELEASES = (
    Column(
        "p_reach",
        pa.float64(),
        "of a stopped trial: (1 + how many similar finished trials gained what it needs for the front) /"
        " (1 + their number); null without a `risk`",
    ),
    Column("released", pa.bool_(), "true if it was stopped early and then trained to its end all the same"),
)
_SIZES = ("size_bytes", "other_bytes", "params", *_LATER)
SHARED_COLUMNS = ("trial_id", "model", *_SIZES, "pruned_by", *[column.name for column in _RELEASES])
SPREAD_SUFFIXES = ("", "_std", "_low", "_high")
_SPREAD_TEXTS = ("mean", "standard deviation", "lower end of the 95 % interval", "upper end of the 95 % interval")


def _val_column(metric: Metric) -> Column:
    return Column(metric.val, pa.float64(), f"{metric.name} on the validation split{_range(metric)}")


def _range(metric: Metric) -> str:
    return ", 0 to 1" if metric.is_fraction else ""


@cache
def trial_columns(metric: Metric = ACCURACY, also: tuple[Metric, ...] = ()) -> tuple[Column, ...]:
    """The columns of the table `trials`, one row per seed.

    Args:
        metric: that judges.
        also: that are measured on the test set only, see `Task.also_tested`.
    """
    warm = f"validation {metric.name} at the end of the float warm-up{_range(metric)}"
    return (
        Column("trial_id", pa.string(), "hash of everything that changes the result"),
        *_AXES,
        Column("seed", pa.int64(), "seed of the initial weights and the batch order"),
        Column("dataset", pa.string(), "data set, or your factory"),
        Column("model", pa.string(), "`mlp`, `cnn`, or your factory"),
        Column("state", pa.string(), "`ok`, `pruned`, `diverged`, `timeout`, `oom` or `failed`"),
        Column("epochs", pa.int32(), "epochs trained, warm-up included"),
        Column("train_loss", pa.float64(), "training loss of the last epoch"),
        _val_column(metric),
        Column(metric.test, pa.float64(), f"{metric.name} on the test set{_range(metric)}"),
        Column(metric.float_val, pa.float64(), warm),
        *[Column(one.test, pa.float64(), f"{one.name} on the test set{_range(one)}") for one in also],
        *[Column(one.name, pa.int64(), one.text) for one in KNOWN_BEFORE],
        Column("inner_dims", pa.list_(pa.list_(pa.int32())), "inner widths of each layer's factors"),
        Column(
            "seconds",
            pa.float64(),
            "training time of this seed in seconds, without compiling; the trial that trains a shared warm-up counts "
            "it",
        ),
        Column("device", pa.string(), "device of the training"),
        Column("error", pa.string(), "why the trial ended early, or a note that its warm-up ended at chance"),
        Column("pruned_by", pa.string(), "`trial_id` of the trial that was ahead; the rule if no single trial was"),
        Column("started_at", pa.timestamp("us", tz="UTC"), "start"),
        Column("finished_at", pa.timestamp("us", tz="UTC"), "end"),
        Column("attempt", pa.int32(), "number of the attempt that wrote this row"),
        *_RELEASES,
    )


@cache
def history_columns(metric: Metric = ACCURACY) -> tuple[Column, ...]:
    """The columns of the table `history`, one row per seed and epoch, of a run that is judged by `metric`."""
    return (
        Column("trial_id", pa.string(), "as in `trials/`"),
        Column("seed", pa.int64(), "as in `trials/`"),
        Column("phase", pa.string(), "`warmup` or `qat`"),
        Column("epoch", pa.int32(), "epoch of its phase, from 1"),
        Column("train_loss", pa.float64(), "mean training loss of the epoch"),
        _val_column(metric),
        Column("seconds", pa.float64(), "training time of this seed and epoch in seconds"),
    )


@cache
def pareto_columns(metric: Metric = ACCURACY, also: tuple[Metric, ...] = ()) -> tuple[Column, ...]:
    """The columns of the Pareto table, one row per configuration; `metric` and `also` are as for `trial_columns`."""
    return (
        Column("trial_id", pa.string(), "as in `trials/`"),
        *_AXES,
        Column("dataset", pa.string(), "data set, or your factory"),
        Column("model", pa.string(), "`mlp`, `cnn`, or your factory"),
        Column("n_seeds", pa.int32(), "seeds that ended `ok`"),
        *_spread(metric.val, f"validation {metric.name} over the seeds"),
        *_spread(metric.test, f"test {metric.name} over the seeds"),
        *[Column(one.test, pa.float64(), f"test {one.name} over the seeds: mean") for one in also],
        *_objectives("size_bytes", "other_bytes", "params", *_LATER),
        Column("state", pa.string(), "worst state of its seeds"),
        Column("pruned_by", pa.string(), "as in `trials/`"),
        Column("epochs", pa.int32(), "epochs trained, warm-up included"),
        Column("pareto_rank", pa.int32(), "1 = on the front; null unless all seeds are `ok`"),
        Column("is_pareto", pa.bool_(), "true if it is on the front"),
        Column("p_front", pa.float64(), "share of 1,000 bootstrap draws over the seeds that put it on the front"),
        *_RELEASES,
    )


def _spread(name: str, text: str) -> list[Column]:
    return [
        Column(f"{name}{suffix}", pa.float64(), f"{text}: {words}")
        for suffix, words in zip(SPREAD_SUFFIXES, _SPREAD_TEXTS, strict=True)
    ]


def _objectives(*names: str) -> list[Column]:
    return [Column(one.name, pa.int64(), one.text) for name in names for one in KNOWN_BEFORE if one.name == name]


@cache
def trials_schema(metric: Metric = ACCURACY, also: tuple[Metric, ...] = ()) -> pa.Schema:
    """The schema of `trial_columns`."""
    return _schema(trial_columns(metric, also))


@cache
def history_schema(metric: Metric = ACCURACY) -> pa.Schema:
    """The schema of `history_columns`."""
    return _schema(history_columns(metric))


@cache
def pareto_schema(metric: Metric = ACCURACY, also: tuple[Metric, ...] = ()) -> pa.Schema:
    """The schema of `pareto_columns`."""
    return _schema(pareto_columns(metric, also))


def metric_in(table: pa.Table) -> Metric:
    """The metric that judges the rows of a table `trials`, `history` or `pareto`: its columns are named by it.

    Accuracy if there is no such column, as in a table of a few columns that an old version wrote.
    """
    by_column = {metric.val: metric for metric in METRICS}
    # Ours come first: what follows them is of another origin.
    return next((by_column[name] for name in table.column_names if name in by_column), ACCURACY)


def mark_costs(pareto: pa.Table, costs: Sequence[Objective]) -> pa.Table:
    """The Pareto table with a note of the costs that its front is over; unchanged for the default ones."""
    if tuple(costs) == DEFAULT_COSTS:
        return pareto
    return pareto.replace_schema_metadata({COSTS_KEY: ",".join(one.name for one in costs)})


def costs_in(pareto: pa.Table) -> tuple[Objective, ...]:
    """The costs that the front of a Pareto table is over, or of some of its rows."""
    noted = (pareto.schema.metadata or {}).get(COSTS_KEY.encode())
    return costs_of(noted.decode().split(",") if noted else None)


def also_in(table: pa.Table) -> tuple[Metric, ...]:
    """The metrics that a table `trials` or `pareto` has of the test set only."""
    by_column = {metric.test: metric for metric in METRICS if metric is not metric_in(table)}
    return tuple(by_column[name] for name in table.column_names if name in by_column)


def trials_schema_of(table: pa.Table) -> pa.Schema:
    """The schema that a table `trials` has once it is complete."""
    return trials_schema(metric_in(table), also_in(table))


def find_partition(where: str) -> str | None:
    """The part of a path or URL that names a column, as `depth=1`; None if there is none.

    Readers such as DuckDB take it for the value of the column in every row of the files below it.
    """
    every = [make(metric) for metric in METRICS for make in (trials_schema, history_schema, pareto_schema)]
    names = {name.lower() for schema in every for name in schema.names}
    return next((part for part in where.split("/") if "=" in part and part.partition("=")[0].lower() in names), None)
