"""The tables and figures of docs/results.md, from the reference sweeps whose results are in sweeps/reference.

Of the fronts `pareto.parquet`, of the study's questions the rows of `trials/`, for these are asked seed by seed. A
front is that of several sweeps together, which differ in how long they train.

`python tests/benchmarks/reference.py` prints the tables, and tests/test_docs.py holds the page to them; with
`--draw` it draws the figures into docs/figures, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qdtune.analysis.answers import answer
from qdtune.analysis.comparison import Comparison
from qdtune.analysis.run import Run
from qdtune.report.page import images
from qdtune.report.plot_data import sheet
from qdtune.report.words import match_published, name_network
from qdtune.spec.axes import OVERHEAD
from qdtune.spec.metric_text import half_interval
from qdtune.spec.objectives import known_before
from qdtune.spec.plan import make_trial
from qdtune.spec.sweep_file import load
from qdtune.spec.tasks import ACCURACY
from qdtune.store.pareto_table import aggregate, ranking, table_front
from qdtune.store.parquet import complete_table
from tests.schemas import HISTORY, PARETO, TRIALS

FOLDER = Path(__file__).parents[2] / "sweeps" / "reference"
SWEEPS = FOLDER.parent
FIGURES = FOLDER.parents[1] / "docs" / "figures"
MLPS = {  # on whole images
    "mnist": ("front_mnist_mlp", "small_mnist", "large_mnist"),
    "fashion_mnist": ("front_fashion_mlp",),
}
FRONTS = {  # all that was trained for a front on a data set; the first sweep gives the figure its words
    "mnist": (
        "front_mnist_final",
        "front_mnist_small",
        "front_mnist_large",
        "cnn_20x20",
        "tiny_8x8",
        "tiny_8x8_overhead",
        "cnn_mnist",
        "cnn_wide",
        *MLPS["mnist"],
    ),
    "fashion_mnist": ("front_fashion_final", "front_fashion_large", *MLPS["fashion_mnist"]),
}
CNNS = ("cnn_mnist", "cnn_wide")
DEPTHS = {"depth": "MNIST", "depth_fashion": "Fashion-MNIST", "depth_cnn": "MNIST, convolutions"}


def tables() -> Iterator[str]:
    """Each table, in Markdown."""
    for dataset, sweeps in FRONTS.items():
        yield _whole_front(dataset, sweeps)
        yield _beside(dataset, sweeps)
    for sweeps in MLPS.values():
        yield _front(together(sweeps))
    yield _tiny()
    yield _overhead()
    yield _full_convolutions()
    yield _convolutions()
    for name, dataset in DEPTHS.items():
        yield _depths(complete_table(pq.read_table(FOLDER / f"{name}.parquet"), TRIALS), dataset)


def _weights(dataset: str, sweeps: Sequence[str]) -> dict[str, int]:
    """The bytes of the weights alone, by trial."""
    found: dict[str, int] = {}
    for name in sweeps:
        spec = load(SWEEPS / f"{name}.yaml").resolve(dataset)
        for row in together([name]).to_pylist():
            found[row["trial_id"]] = make_trial(spec, row).sizes.weight_bytes
    return found


def _whole_front(dataset: str, sweeps: Sequence[str]) -> str:
    """The front of all networks on a data set."""
    pareto, weights = together(sweeps), _weights(dataset, sweeps)
    sweep_of = {i: name for name in sweeps for i in together([name])["trial_id"].to_pylist()}
    rows = []
    for row in table_front(pareto).to_pylist():
        counted = [f"{n:,}" for n in (row["size_bytes"], weights[row["trial_id"]])]
        accuracies = [_interval(row, split) for split in ("val_accuracy", "test_accuracy")]
        kind = "linear" if row["model"] == "mlp" else "convolutions"
        from_sweep = f"`{sweep_of[row['trial_id']]}`"
        rows.append([*counted, kind, name_network(row), str(row["epochs"]), *accuracies, from_sweep])
    heads = ["bytes", "weights alone", "kind", "network", "epochs", "validation %", "test %", "sweep"]
    return _markdown(heads, rows)


def _beside(dataset: str, sweeps: Sequence[str]) -> str:
    """Every published network, beside the smallest of a front that is as accurate, in both ways of counting bytes."""
    pareto, weights = together(sweeps), _weights(dataset, sweeps)
    heads = ["published", "kind, pixels", "bytes", "test %"]
    heads += ["ours: weights alone", "ours: everything", "test %"]
    rows = []
    for other, row in match_published(pareto, dataset):
        theirs = [other.system, f"{other.kind}, {other.pixels}", f"{other.weight_bytes:,}"]
        ours = ["-", "-", "none so accurate"]
        if row:
            sizes = (weights[row["trial_id"]], row["size_bytes"])
            ours = [f"{size:,} ({size / other.weight_bytes:.2f})" for size in sizes]
            ours.append(_interval(row, "test_accuracy"))
        rows.append([*theirs, f"{100 * other.test_accuracy:.2f}", *ours])
    return _markdown(heads, rows)


def together(sweeps: Sequence[str]) -> pa.Table:
    """The configurations of several sweeps as one Pareto table, as `columns.PARETO`."""
    table = pa.concat_tables(
        complete_table(pq.read_table(FOLDER / f"{name}.parquet"), PARETO).select(PARETO.names) for name in sweeps
    )
    columns = ranking(table)
    columns["p_front"] = pa.nulls(len(table), pa.float64())  # was that of a front of its own sweep
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column.cast(PARETO.field(name).type))
    return table


def draw() -> None:
    """Draws each front over its points, with published networks beside it."""
    for dataset, sweeps in FRONTS.items():
        spec = load(SWEEPS / f"{sweeps[0]}.yaml").resolve(dataset)
        run = Run(sweeps[0], "", spec, TRIALS.empty_table(), HISTORY.empty_table(), together(sweeps), (), 0)
        name, svg = next(images(sheet(run), reference=True))
        assert name == "front.svg"
        (FIGURES / f"front_{dataset.removesuffix('_mnist')}.svg").write_bytes(svg)


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


def _tiny() -> str:
    """The front of the smallest linear networks."""
    spec = load(SWEEPS / "tiny_8x8.yaml").resolve("mnist")
    front = table_front(complete_table(pq.read_table(FOLDER / "tiny_8x8.parquet"), PARETO)).to_pylist()
    weights = {row["trial_id"]: make_trial(spec, row).sizes.weight_bytes for row in front}
    heads = ["bytes", "weights alone", "hidden", "bits", "last layer", "validation %", "test %"]
    rows = []
    for row in front:
        bits = [str(row["weight_bits"]), "as the others" if row["last_bits"] is None else f"{row['last_bits']} bits"]
        accuracies = [_interval(row, split) for split in ("val_accuracy", "test_accuracy")]
        counted = [f"{row['size_bytes']:,}", f"{weights[row['trial_id']]:,}"]
        rows.append([*counted, row["hidden"], *bits, *accuracies])
    return _markdown(heads, rows)


def _overhead() -> str:
    """Networks with each kind of overhead."""
    spec = load(SWEEPS / "tiny_8x8_overhead.yaml").resolve("mnist")
    table = complete_table(pq.read_table(FOLDER / "tiny_8x8_overhead.parquet"), PARETO)
    every = table.to_pylist()
    weights = {row["trial_id"]: make_trial(spec, row).sizes.weight_bytes for row in every}
    found: dict[tuple[int, str, int], dict[str, dict[str, Any]]] = {}
    for row in every:
        key = (weights[row["trial_id"]], row["hidden"], row["weight_bits"])
        found.setdefault(key, {})[row["overhead"]] = row
    heads = ["weights alone", "hidden", "bits"]
    heads += [f"{name}: {what}" for name in OVERHEAD.names for what in ("bytes", "test %")]
    rows = []
    for (size, hidden, bits), by_overhead in sorted(found.items()):
        cells = [f"{size:,}", hidden, str(bits)]
        for name in OVERHEAD.names:
            one = by_overhead.get(name)
            cells += [f"{one['size_bytes']:,}", _interval(one, "test_accuracy")] if one else ["-", "-"]
        rows.append(cells)
    return _markdown(heads, rows)


def _full_convolutions() -> str:
    """The front of networks of full convolutions."""
    spec = load(SWEEPS / "cnn_20x20.yaml").resolve("mnist")
    rows = []
    for row in table_front(together(["cnn_20x20"])).to_pylist():
        trial = make_trial(spec, row)
        counted = [f"{n:,}" for n in (row["size_bytes"], trial.sizes.weight_bytes, known_before(trial)["macs"])]
        network = [str(row[name]) for name in ("channels", "weight_bits")]
        rows.append([*counted, *network, *(_interval(row, split) for split in ("val_accuracy", "test_accuracy"))])
    heads = ["bytes", "weights alone", "MACs", "channels", "bits", "validation %", "test %"]
    return _markdown(heads, rows)


def _convolutions() -> str:
    """The front of networks with depthwise convolutions."""
    specs = {name: load(SWEEPS / f"{name}.yaml").resolve("mnist") for name in CNNS}
    of = {trial_id: name for name in CNNS for trial_id in together([name])["trial_id"].to_pylist()}
    front = table_front(together(CNNS)).to_pylist()
    trials = {row["trial_id"]: make_trial(specs[of[row["trial_id"]]], row) for row in front}
    heads = ["bytes", "weights alone", "MACs", "channels", "bits by layer", "hidden", "others as", "images", "epochs"]
    rows = []
    for row in front:
        trial = trials[row["trial_id"]]
        counted = [f"{n:,}" for n in (row["size_bytes"], trial.sizes.weight_bytes, known_before(trial)["macs"])]
        network = [str(row[name]) for name in ("channels", "layer_bits", "hidden", "overhead", "augment", "epochs")]
        rows.append([*counted, *network, *(_interval(row, split) for split in ("val_accuracy", "test_accuracy"))])
    heads += ["validation %", "test %"]
    return _markdown(heads, rows)


def _effect(one: Comparison) -> str:
    """In points with its interval, bold where it is decided."""
    if one.effect is None or one.low is None or one.high is None:
        return one.verdict
    text = f"{100 * one.effect:+.2f} ({100 * one.low:+.2f} to {100 * one.high:+.2f})"
    return f"**{text}**" if one.verdict in ("helps", "hurts") else text


def _front(pareto: pa.Table) -> str:
    heads = ["bytes", "hidden", "depth", "between", "bits", "inputs", "images", "epochs", "validation %", "test %"]
    rows = []
    for row in table_front(pareto).to_pylist():
        between = row["activation"] if row["depth"] > 1 else "-"
        network = [str(row[name]) for name in ("hidden", "depth")]
        accuracies = [_interval(row, split) for split in ("val_accuracy", "test_accuracy")]
        inputs = "float" if row["act_bits"] is None else f"{row['act_bits']} bits"
        seen = "as they are" if row["augment"] == "none" else row["augment"]
        trained = [seen, str(row["epochs"])]
        bits = str(row["weight_bits"])
        rows.append([f"{row['size_bytes']:,}", *network, between, bits, inputs, *trained, *accuracies])
    return _markdown(heads, rows)


def _interval(row: dict[str, float], name: str) -> str:
    """A mean ± half of its 95 % interval, in per cent."""
    half = half_interval(ACCURACY, row[name], row[f"{name}_low"], row[f"{name}_high"])
    return f"{100 * row[name]:.2f} ± {100 * (half or 0):.2f}"


def _markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Prints the tables of the reference sweeps.")
    parser.add_argument("--draw", action="store_true", help="draw the figures, too")
    if parser.parse_args().draw:
        draw()
    print("\n\n".join(tables()))
