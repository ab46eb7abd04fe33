"""What is asked of the tables of a run folder by those who read them: the home of Arrow is here.

A `Table` is an Arrow table; its columns turn into lists with `to_pylist` and into arrays with `to_numpy`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

Table: TypeAlias = pa.Table


def rows_equal(table: Table, column: str, value: Any) -> Table:
    """The rows whose cell in a column is `value`."""
    return table.filter(pc.equal(table[column], value))


def rows_among(table: Table, column: str, values: Collection[str]) -> Table:
    """The rows whose cell in a column of text is one of `values`."""
    return table.filter(pc.is_in(table[column], pa.array(sorted(values), pa.string())))


def rows_known(table: Table, column: str) -> Table:
    """The rows whose cell in a column is not null."""
    return table.filter(pc.is_valid(table[column]))


def rows_up_to(table: Table, column: str, most: float) -> Table:
    """The rows whose cell in a column is a number of at most `most`."""
    return table.filter(pc.less_equal(table[column], most))
