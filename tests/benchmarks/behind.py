"""How often is a verdict `behind` wrong? Recorded sweeps are run again with a pruner, and held against whole curves.

    python tests/benchmarks/behind.py [--orders 10] [--recording mnist ...]

For each recording in `tests/data`, simulated sweeps with 2, 4 and 8 trials at a time in random orders. In each, what
the pruner stops is stopped in the tables, and the comparisons of the report are made. A verdict is wrong if the side
that is behind has the better mean in the unpruned sweep.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qdtune.analysis.behind import CurveBook
from qdtune.analysis.comparison import Comparison
from qdtune.analysis.comparisons import compare_activations, compare_depths
from qdtune.commands.replay import with_pruner
from qdtune.search.simulation import simulate
from qdtune.store.pairs import find_sides
from qdtune.store.parquet import complete_table
from tests.schemas import HISTORY, TRIALS
from tests.search.test_recorded import DATA, recipe, recorded

AT_ONCE = (2, 4, 8)
LATER = "{type: pareto, min_epochs: 18}"  # the second of 8 epochs is the 18th of 72
RECORDINGS: dict[str, tuple[Callable[[str], Any], str, str, str]] = {  # its reader, data set, start of files, rule
    "notebook, MNIST": (recorded, "mnist", "mnist", "pareto"),
    "notebook, Fashion-MNIST": (recorded, "fashion_mnist", "fashion_mnist", "pareto"),
    "recipe, MNIST": (recipe, "mnist", "recipe_mnist", "pareto"),
    "recipe, Fashion-MNIST": (recipe, "fashion_mnist", "recipe_fashion_mnist", "pareto"),
    "recipe, digits": (recipe, "digits", "recipe_digits", LATER),
}


def compare(trials: Any, history: Any) -> list[Comparison]:
    """The comparisons of both questions."""
    book, sides = CurveBook(trials, history), find_sides(trials)
    return [*compare_depths(sides, book), *compare_activations(sides, book)]


def name_of(one: Comparison) -> tuple[Any, ...]:
    """What tells a comparison from the others of its sweep."""
    return one.axis, one.names, one.weight_bits, one.setting


@dataclass
class Count:
    """What came out over simulated sweeps.

    Attributes:
        sweeps: how many there were.
        refused: comparisons that are refused because a side was stopped early.
        behind: the verdicts.
        misses: of the wrong ones, by how much the side that is said to be behind has the better mean.
    """

    sweeps: int = 0
    refused: int = 0
    behind: int = 0
    misses: list[float] = field(default_factory=list)

    def add(self, comparisons: Sequence[Comparison], truth: dict[tuple[Any, ...], float | None]) -> None:
        """Counts the comparisons of one simulated sweep; `truth` has the effects of the unpruned one."""
        self.sweeps += 1
        self.refused += sum(one.obstacle == "pruned" for one in comparisons)
        for one in comparisons:
            effect = truth[name_of(one)] if one.verdict == "behind" else None
            if effect is not None:
                self.behind += 1
                if effect and (effect > 0) == (one.behind == one.names[0]):
                    self.misses.append(abs(effect))


def measure(recording: str, orders: int) -> Count:
    """The counts over simulated sweeps.

    Args:
        recording: a key of `RECORDINGS`.
        orders: random orders for each number of trials at a time.
    """
    read, dataset, files, rule = RECORDINGS[recording]
    spec, results = read(dataset)
    trials, history = (
        complete_table(pq.read_table(DATA / f"{files}_{name}.parquet"), schema)
        for name, schema in (("trials", TRIALS), ("history", HISTORY))
    )
    truth = {name_of(one): one.effect for one in compare(trials, history)}
    rows, epochs = trials.to_pylist(), history.to_pylist()
    spec = with_pruner(spec, rule).model_copy(update={"method": "grid", "replicate": None})
    whole, found = {result.trial.trial_id: result for result in results}, Count()
    for at_once in AT_ONCE:
        for seed in range(orders):
            noise = random.Random(seed)
            order = noise.sample([result.trial for result in results], len(results))
            *_, ends = simulate(spec, whole, order, at_once, noise)
            cut = {name: len(end.curve) for name, end in ends.items() if end.state == "pruned"}
            seen = [row | stopped(row["trial_id"] in cut) for row in rows]
            curves = [
                row for row in epochs if row["phase"] == "warmup" or row["epoch"] <= cut.get(row["trial_id"], 1e9)
            ]
            tables = pa.Table.from_pylist(seen, schema=TRIALS), pa.Table.from_pylist(curves, schema=HISTORY)
            found.add(compare(*tables), truth)
    return found


def stopped(is_stopped: bool) -> dict[str, Any]:
    """The changes of a row whose trial was stopped."""
    return {"state": "pruned", "test_accuracy": None} if is_stopped else {}


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--orders", type=int, default=10, help="random orders for each number of trials at a time")
    parser.add_argument("--recording", nargs="+", default=list(RECORDINGS), choices=list(RECORDINGS))
    given = parser.parse_args()
    print("| recording | sweeps | comparisons with a stopped side | of them behind | wrong | largest miss |")
    print("|---|---|---|---|---|---|", flush=True)
    for recording in given.recording:
        found = measure(recording, given.orders)
        stopped_in_all = found.refused + found.behind
        wrong, miss = len(found.misses), max(found.misses, default=0.0)
        share = f"{wrong} ({wrong / found.behind:.1%})".replace("%", " %") if found.behind else "-"
        cells = [
            recording,
            found.sweeps,
            f"{stopped_in_all:,}",
            f"{found.behind:,}",
            share,
            f"{100 * miss:.2f} points",
        ]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
