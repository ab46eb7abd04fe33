"""Filters and sums over the tables of a run folder, so that only `store` imports Arrow.

A `Table` is an Arrow table; `to_pylist` turns its columns into lists and `to_numpy` turns them into arrays.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.store.columns import metric_in

Table: TypeAlias = pa.Table


def rows_equal(table: Table, column: str, value: Any) -> Table:
    """The rows whose cell in a column is `value`."""
    return table.filter(pc.equal(table[column], value))


def rows_among(table: Table, column: str, values: Collection[str]) -> Table:
    """The rows whose cell in a text column is one of `values`."""
    return table.filter(pc.is_in(table[column], pa.array(sorted(values), pa.string())))


def rows_of_seeds(table: Table, seeds: Collection[int]) -> Table:
    """The rows of these seeds."""
    return table.filter(pc.is_in(table["seed"], pa.array(sorted(seeds), pa.int64())))


def rows_known(table: Table, column: str) -> Table:
    """The rows whose cell in a column is not null."""
    return table.filter(pc.is_valid(table[column]))


def rows_up_to(table: Table, column: str, most: float) -> Table:
    """The rows whose cell in a number column is at most `most`."""
    return table.filter(pc.less_equal(table[column], most))


def rows_where(table: Table, keep: Collection[bool]) -> Table:
    """The rows whose flag in `keep` is true; one flag per row."""
    return table.filter(pa.array(list(keep), pa.bool_()))


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> Table:
    """The table with these rows."""
    return pa.Table.from_pylist(rows, schema=schema)


def mean_curves(history: Table, owners: dict[str, int], warmup_epochs: int) -> Table:
    """The mean metric over seeds at each epoch: columns `place`, `epoch` from 1, warm-up first, and `val_mean`.

    Args:
        history: one row per seed and epoch.
        owners: trial_id -> `place`.
        warmup_epochs: the number of epochs before QAT.
    """
    index = pc.index_in(history["trial_id"], pa.array(list(owners), pa.string()))
    place = pa.array(list(owners.values()), pa.int64()).take(index)
    shift = pc.if_else(pc.equal(history["phase"], "warmup"), 0, warmup_epochs)
    epoch = pc.add(history["epoch"].cast(pa.int64()), shift)
    flat = pa.table({"place": place, "epoch": epoch, "val": history[metric_in(history).val]})
    return flat.group_by(["place", "epoch"], use_threads=False).aggregate([("val", "mean")])
