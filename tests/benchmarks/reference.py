"""The README's tables of the reference fronts, from the Pareto tables under sweeps/reference.

`python tests/benchmarks/reference.py` prints them; tests/test_readme.py holds the README to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qdtune.summary import beside
from qdtune.tables import table_front

FOLDER = Path(__file__).parents[2] / "sweeps" / "reference"
DATASETS = {"front_mnist": "mnist", "front_fashion": "fashion_mnist"}


def tables() -> Iterator[str]:
    """Each table, in Markdown."""
    for name, dataset in DATASETS.items():
        pareto = pq.read_table(FOLDER / f"{name}.parquet")
        yield _front(pareto)
        found = beside(pareto, dataset)
        assert found is not None
        yield _markdown(found.heads, found.rows)


def _front(pareto: pa.Table) -> str:
    heads = ["bytes", "hidden", "depth", "between", "bits", "validation (%)", "test (%)"]
    rows = []
    for row in table_front(pareto).to_pylist():
        between = row["activation"] if row["depth"] > 1 else "-"
        network = [str(row[name]) for name in ("hidden", "depth")]
        accuracies = [_interval(row, split) for split in ("val_accuracy", "test_accuracy")]
        rows.append([f"{row['size_bytes']:,}", *network, between, str(row["weight_bits"]), *accuracies])
    return _markdown(heads, rows)


def _interval(row: dict[str, float], name: str) -> str:
    """A mean ± half of its 95 % interval, in per cent."""
    return f"{100 * row[name]:.2f} ± {50 * (row[f'{name}_high'] - row[f'{name}_low']):.2f}"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print("\n\n".join(tables()))
