"""The columns of the tables in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from qdtune.spec.axes import AXES
from qdtune.spec.objectives import KNOWN_BEFORE, OBJECTIVES

# A new column raises the version. A file of this version has all columns; an absent column of an older file reads as
# null, or as `Axis.before` if it is an axis. From the first version on, axes and objectives say when they came.
FIRST_VERSION = 5
SCHEMA_VERSION = max(FIRST_VERSION, *(one.since for one in (*AXES, *OBJECTIVES)))
STATES = ("ok", "pruned", "diverged", "timeout", "oom", "failed")  # from best to worst
# A trial in another state runs again on the next launch, because its state may differ then.
FINAL = frozenset({"ok", "pruned", "diverged"})
_ARROW = {"int32": pa.int32(), "float64": pa.float64(), "string": pa.string()}


class Column(NamedTuple):
    """A column of a table: its name, its Arrow type, and a few words for the docs."""

    name: str
    kind: pa.DataType
    text: str


def _schema(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema([(column.name, column.kind) for column in columns])


_AXES = [Column(axis.name, _ARROW[axis.column], axis.text) for axis in AXES]
TRIAL_COLUMNS = (
    Column("trial_id", pa.string(), "hash of everything that changes the result"),
    *_AXES,
    Column("seed", pa.int64(), "seed of the initial weights and the batch order"),
    Column("dataset", pa.string(), "data set, or your factory"),
    Column("model", pa.string(), "`mlp`, or your factory"),
    Column("state", pa.string(), "`ok`, `pruned`, `diverged`, `timeout`, `oom` or `failed`"),
    Column("epochs", pa.int32(), "epochs trained, warm-up included"),
    Column("train_loss", pa.float64(), "training loss of the last epoch"),
    Column("val_accuracy", pa.float64(), "accuracy on the validation split, 0 to 1"),
    Column("test_accuracy", pa.float64(), "accuracy on the test set, 0 to 1"),
    Column("float_val_accuracy", pa.float64(), "validation accuracy at the end of the float warm-up, 0 to 1"),
    *[Column(one.name, pa.int64(), one.text) for one in KNOWN_BEFORE],
    Column("inner_dims", pa.list_(pa.list_(pa.int32())), "inner widths of each layer's factors"),
    Column(
        "seconds",
        pa.float64(),
        "training time of this seed in seconds, without compiling; the trial that trains a shared warm-up counts it",
    ),
    Column("device", pa.string(), "device of the training"),
    Column("error", pa.string(), "why the trial ended early, or a note that its warm-up ended at chance"),
    Column("pruned_by", pa.string(), "`trial_id` of the trial that was ahead; the rule if no single trial was"),
    Column("started_at", pa.timestamp("us", tz="UTC"), "start"),
    Column("finished_at", pa.timestamp("us", tz="UTC"), "end"),
    Column("attempt", pa.int32(), "number of the attempt that wrote this row"),
)
TRIALS = _schema(TRIAL_COLUMNS)
HISTORY_COLUMNS = (
    Column("trial_id", pa.string(), "as in `trials/`"),
    Column("seed", pa.int64(), "as in `trials/`"),
    Column("phase", pa.string(), "`warmup` or `qat`"),
    Column("epoch", pa.int32(), "epoch of its phase, from 1"),
    Column("train_loss", pa.float64(), "mean training loss of the epoch"),
    Column("val_accuracy", pa.float64(), "accuracy on the validation split, 0 to 1"),
    Column("seconds", pa.float64(), "training time of this seed and epoch in seconds"),
)
HISTORY = _schema(HISTORY_COLUMNS)
_LATER = tuple(one.name for one in KNOWN_BEFORE if one.since > FIRST_VERSION)
# The columns in which all seeds of a configuration agree.
SHARED_COLUMNS = ("trial_id", "model", "size_bytes", "other_bytes", "params", "pruned_by", *_LATER)
SPREAD_SUFFIXES = ("", "_std", "_low", "_high")
_SPREAD_TEXTS = ("mean", "standard deviation", "lower end of the 95 % interval", "upper end of the 95 % interval")


def _spread(name: str, text: str) -> list[Column]:
    return [
        Column(f"{name}{suffix}", pa.float64(), f"{text}: {words}")
        for suffix, words in zip(SPREAD_SUFFIXES, _SPREAD_TEXTS, strict=True)
    ]


def _objectives(*names: str) -> list[Column]:
    return [Column(one.name, pa.int64(), one.text) for name in names for one in KNOWN_BEFORE if one.name == name]


PARETO_COLUMNS = (
    Column("trial_id", pa.string(), "as in `trials/`"),
    *_AXES,
    Column("dataset", pa.string(), "data set, or your factory"),
    Column("model", pa.string(), "`mlp`, or your factory"),
    Column("n_seeds", pa.int32(), "seeds that ended `ok`"),
    *_spread("val_accuracy", "validation accuracy over the seeds"),
    *_spread("test_accuracy", "test accuracy over the seeds"),
    *_objectives("size_bytes", "other_bytes", "params", *_LATER),
    Column("state", pa.string(), "worst state of its seeds"),
    Column("pruned_by", pa.string(), "as in `trials/`"),
    Column("epochs", pa.int32(), "epochs trained, warm-up included"),
    Column("pareto_rank", pa.int32(), "1 = on the front; null unless all seeds are `ok`"),
    Column("is_pareto", pa.bool_(), "true if it is on the front"),
    Column("p_front", pa.float64(), "share of 1,000 bootstrap draws over the seeds that put it on the front"),
)
PARETO = _schema(PARETO_COLUMNS)


def find_partition(where: str) -> str | None:
    """The part of a path or URL that names a column, as `depth=1`; None if there is none.

    Readers such as DuckDB take it for the value of the column in every row of the files below it.
    """
    names = {name.lower() for schema in (TRIALS, HISTORY, PARETO) for name in schema.names}
    return next((part for part in where.split("/") if "=" in part and part.partition("=")[0].lower() in names), None)
