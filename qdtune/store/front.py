"""The front as text: the one table that a sweep draws live and prints at its end, and that a report shows."""

from __future__ import annotations

from typing import Any

from qdtune.messages import format_count
from qdtune.spec.axes import AXIS_NAMES, SHOWN, head_of, label
from qdtune.spec.metric_text import column_head, format_metric
from qdtune.spec.objectives import DEFAULT_COSTS, SIZE_BYTES, say_list
from qdtune.store.columns import also_in, costs_in, metric_in
from qdtune.store.pareto_table import table_front
from qdtune.store.tables import Table
from qdtune.terminal import table_width, text_table

LABEL_HEAD = "configuration"  # of the column of labels


def print_front(pareto: Table, dataset: str, out: Any, *, budget: int | None = None, width: int = 0) -> None:
    """Prints the front under its title, and how to read its metric; nothing if it is empty.

    Args:
        pareto: the Pareto table.
        dataset: the name of its data set.
        out: the console.
        budget: the size limit of the table in bytes; None: no limit.
        width: characters that the table may take to show the column `p front`.
    """
    front = table_front(pareto)
    if not front.num_rows:
        return
    room = out.width if out.is_terminal else None
    out.print(front_table(front, varying_axes(pareto), front_title(pareto, dataset, budget), width, room))
    if max(front["n_seeds"].to_pylist()) > 1:
        metric = metric_in(front)
        better = "" if metric.sign > 0 else "; lower is better"
        out.print(f"{metric.name}: mean of n seeds ± half of its 95 % interval (Student t){better}", style="dim")


def front_table(front: Table, varying: set[str], title: str, width: int = 0, room: int | None = None) -> Any:
    """The text table of `front_cells`.

    Args:
        front: rows of the Pareto table.
        varying: names of the axes to show.
        title: the line above it.
        width: characters that the table may take to show the column `p front`.
        room: characters of a line; if the table takes more, one column has the label of each configuration instead of
            a column for each axis. None: no limit.
    """
    heads, rows = front_cells(front, varying)
    if table_width(heads, rows) > width:
        heads, rows = heads[:-1], [cells[:-1] for cells in rows]
    if room is not None and table_width(heads, rows) > room:
        heads, rows = _merge_axes(front, varying, heads, rows)
    return text_table(heads, rows, title=title, folded=[LABEL_HEAD])


def _merge_axes(
    front: Table, varying: set[str], heads: list[str], rows: list[list[str]]
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the front with one column for all axes that labels name."""
    named = [axis.name for axis in SHOWN if axis.name in varying and axis.tag]
    merged = {head_of(name) for name in named}
    kept = [place for place, head in enumerate(heads) if head not in merged]
    labels = [label(row, named) or "-" for row in front.to_pylist()]
    first = next((place for place, head in enumerate(heads) if head in merged), len(heads))
    before = sum(place < first for place in kept)
    lines = [[cells[place] for place in kept] for cells in (heads, *rows)]
    lines = [[*line[:before], text, *line[before:]] for line, text in zip(lines, [LABEL_HEAD, *labels], strict=True)]
    return lines[0], lines[1:]


def front_cells(front: Table, varying: set[str]) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of the front as text: its costs, the varying axes, the metrics, n, `p front`.

    Bytes come first if they are none of the costs.

    Args:
        front: rows of the Pareto table.
        varying: names of the axes to show.
    """
    metric, also, costs = metric_in(front), also_in(front), costs_in(front)
    axes = [axis.name for axis in SHOWN if axis.name in varying]
    sizes = costs if SIZE_BYTES in costs else (SIZE_BYTES, *costs)
    rows = []
    for row in front.to_pylist():
        measured = [
            format_metric(metric, *(row[f"{name}{part}"] for part in ("", "_low", "_high")))
            for name in (metric.val, metric.test)
        ]
        measured += [format_metric(one, row[one.test]) for one in also]
        p_front = "-" if row["p_front"] is None else f"{row['p_front']:.2f}"
        axis_cells = [_format_cell(row[axis]) for axis in axes]
        size_cells = [f"{row[one.name]:,}" for one in sizes]
        rows.append([*size_cells, *axis_cells, *measured, str(row["n_seeds"]), p_front])
    heads = [column_head(metric, "validation"), column_head(metric, "test")]
    heads += [column_head(one, "test") for one in also]
    return [*(one.head for one in sizes), *map(head_of, axes), *heads, "n", "p front"], rows


def front_title(pareto: Table, dataset: str, budget: int | None = None) -> str:
    """The line above the front of a Pareto table: `Pareto front on digits: 3 of 6 configurations`."""
    costs = costs_in(pareto)
    over = "" if costs == DEFAULT_COSTS else f" over {say_list([cost.head for cost in costs])}"
    within = "" if budget is None else f", within {format_count(budget, 'byte')}"
    count = f"{table_front(pareto).num_rows:,} of {format_count(pareto.num_rows, 'configuration')}"
    return f"Pareto front on {dataset}{over}{within}: {count}"


def varying_axes(pareto: Table) -> set[str]:
    """The names of the axes that have several values in a Pareto table."""
    return {axis for axis in AXIS_NAMES if len(pareto[axis].unique()) > 1}


def _format_cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
