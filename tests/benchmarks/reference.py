"""The README's tables of the reference sweeps, from what is kept of these under sweeps/reference.

Of the fronts `pareto.parquet`, of the study's questions the rows of `trials/`, for these are asked seed by seed.

`python tests/benchmarks/reference.py` prints them; tests/test_readme.py holds the README to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from qdtune.answers import answer
from qdtune.comparisons import Comparison
from qdtune.summary import beside
from qdtune.tables import HISTORY, TRIALS, aggregate, completed, table_front

FOLDER = Path(__file__).parents[2] / "sweeps" / "reference"
FRONTS = {"front_mnist": "mnist", "front_fashion": "fashion_mnist"}
DEPTHS = {"depth": "MNIST", "depth_fashion": "Fashion-MNIST"}


def tables() -> Iterator[str]:
    """Each table, in Markdown."""
    for name, dataset in FRONTS.items():
        pareto = pq.read_table(FOLDER / f"{name}.parquet")
        yield _front(pareto)
        found = beside(pareto, dataset)
        assert found is not None
        yield _markdown(found.heads, found.rows)
    for name, dataset in DEPTHS.items():
        yield _depths(completed(pq.read_table(FOLDER / f"{name}.parquet"), TRIALS), dataset)


def _depths(trials: pa.Table, dataset: str) -> str:
    found = answer(trials, HISTORY.empty_table(), aggregate(trials))
    depths = {(one.weight_bits, one.depth, one.activation): one for one in found.depth}
    heads = [dataset, "depth", "identity, against depth 1", "ReLU, against depth 1", "ReLU, against identity"]
    rows = []
    for between in found.activation:
        bits, depth = between.weight_bits, between.depth
        asked = [depths[bits, depth, "identity"], depths[bits, depth, "relu"], between]
        rows.append([f"{bits} bit{'s' if bits > 1 else ''}", str(depth), *map(_effect, asked)])
    return _markdown(heads, rows)


def _effect(one: Comparison) -> str:
    """In points with its interval, bold where it is decided."""
    if one.effect is None or one.low is None or one.high is None:
        return one.verdict
    text = f"{100 * one.effect:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
    return f"**{text}**" if one.verdict in ("helps", "hurts") else text


def _front(pareto: pa.Table) -> str:
    heads = ["bytes", "hidden", "depth", "between", "bits", "inputs", "validation (%)", "test (%)"]
    rows = []
    for row in table_front(pareto).to_pylist():
        between = row["activation"] if row["depth"] > 1 else "-"
        network = [str(row[name]) for name in ("hidden", "depth")]
        accuracies = [_interval(row, split) for split in ("val_accuracy", "test_accuracy")]
        inputs = "float" if row["act_bits"] is None else f"{row['act_bits']} bits"
        rows.append([f"{row['size_bytes']:,}", *network, between, str(row["weight_bits"]), inputs, *accuracies])
    return _markdown(heads, rows)


def _interval(row: dict[str, float], name: str) -> str:
    """A mean ± half of its 95 % interval, in per cent."""
    return f"{100 * row[name]:.2f} ± {50 * (row[f'{name}_high'] - row[f'{name}_low']):.2f}"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print("\n\n".join(tables()))
