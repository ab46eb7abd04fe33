"""The front as text, the same on a terminal, on the page and while a sweep runs."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from qdtune.messages import format_percent
from qdtune.spec.axes import SHOWN, head_of
from qdtune.terminal import text_table


def front_cells(front: pa.Table, varying: set[str]) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of the front as text, by size: bytes, the axes that vary, accuracies, n, `p front`."""
    axes = [axis.name for axis in SHOWN if axis.name in varying]
    rows = []
    for row in front.to_pylist():
        accuracies = [
            format_percent(*(row[f"{split}_accuracy{part}"] for part in ("", "_low", "_high")))
            for split in ("val", "test")
        ]
        sure = "-" if row["p_front"] is None else f"{row['p_front']:.2f}"
        axis_cells = [_cell(row[axis]) for axis in axes]
        rows.append([f"{row['size_bytes']:,}", *axis_cells, *accuracies, str(row["n_seeds"]), sure])
    return ["bytes", *map(head_of, axes), "validation", "test", "n", "p front"], rows


def front_table(front: pa.Table, varying: set[str], title: str, width: int = 0) -> Any:
    """The front as `front_cells` has it, to be printed; `p front` only where all fit into `width` characters."""
    heads, rows = front_cells(front, varying)
    needed = sum(max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True)) - 2
    if needed > width:
        heads, rows = heads[:-1], [cells[:-1] for cells in rows]
    return text_table(heads, rows, title=title)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
