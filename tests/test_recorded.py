"""The pruner on real curves: `sweeps/grid.yaml`, unpruned, as it was recorded on MNIST and on Fashion-MNIST.

`tests/data` holds the rows and curves of both runs (qdtune 0.1, torch 2.15.0, 2 CPU cores). The defaults of the
pruner were chosen on MNIST; the table in the README is over more orders.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qdtune.replay import Score, score, with_pruner
from qdtune.results import Result, results
from qdtune.spec import Spec, load

DATA = Path(__file__).parent / "data"
GRID = Path(__file__).parents[1] / "sweeps" / "grid.yaml"


def recorded(name: str) -> tuple[Spec, list[Result]]:
    spec = load(GRID, [f"data.dataset={name}"]).resolve(name)
    tables = [pq.read_table(DATA / f"{name}_{table}.parquet") for table in ("trials", "history")]
    return spec, results(spec, *tables)


def judged(name: str, rule: str, orders: int = 10, order: str = "shuffled") -> Score:
    spec, found = recorded(name)
    assert len(found) == 35
    whole = Score()
    for at_once in (2, 4, 8):
        whole += score(with_pruner(spec, rule), found, at_once, range(orders), order)
    return whole


@pytest.mark.parametrize(("name", "least"), [("mnist", 0.35), ("fashion_mnist", 0.3)])
def test_pareto_loses_no_front_member_and_saves_a_third_of_the_epochs(name, least):
    found = judged(name, "pareto")
    assert max(found.lost) == 0
    assert min(found.kept) == 1
    assert statistics.mean(found.saved) > least


def test_pareto_saves_most_when_small_models_start_first():
    first, shuffled = (
        statistics.mean(judged("mnist", "pareto", 5, order).saved) for order in ("small_first", "shuffled")
    )
    assert first > shuffled + 0.03


@pytest.mark.parametrize("kind", ["median", "hyperband", "successive_halving"])
def test_a_pruner_of_accuracy_alone_loses_the_front(kind):
    assert statistics.mean(lost > 0 for lost in judged("mnist", f"{{type: {kind}, scope: all}}", 3).lost) > 0.5
