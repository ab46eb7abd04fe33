"""The pruner and `qdtune replay` on real curves: unpruned sweeps, as recorded.

`tests/data` holds their rows and curves. Two are of `recorded.yaml` on MNIST and Fashion-MNIST (qdtune 0.1, torch
2.15.0, 2 CPU cores): the notebook's schedule. Three are of `recipe.yaml`, which is `sweeps/grid.yaml` without a
pruner: MNIST and Fashion-MNIST with 3 seeds, digits with 12 and `recipe_digits.yaml` (torch 2.14.1, 2 cores of an
Intel Xeon). The defaults of the pruner were chosen on all but Fashion-MNIST of the recipe, which was kept to the end.
The tables in docs/pruning.md are over more orders.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from qdtune.commands.replay import main, with_pruner
from qdtune.search.simulation import Score, score
from qdtune.spec.sweep_file import Spec, load
from qdtune.store.parquet import complete_table
from qdtune.store.results import Result, results
from qdtune.store.store import Store
from tests.schemas import TRIALS

DATA = Path(__file__).parents[1] / "data"
GRID = Path(__file__).parents[2] / "tests" / "data" / "recorded.yaml"


def recorded(name: str) -> tuple[Spec, list[Result]]:
    spec = load(GRID, [f"data.dataset={name}"]).resolve(name)
    tables = [pq.read_table(DATA / f"{name}_{table}.parquet") for table in ("trials", "history")]
    return spec, results(spec, *tables)


def recipe(name: str) -> tuple[Spec, list[Result]]:
    """A recording of the recipe, with the name of a data set."""
    file = DATA / ("recipe_digits.yaml" if name == "digits" else "recipe.yaml")
    spec = load(file, [f"data.dataset={name}"]).resolve(name)
    tables = [pq.read_table(DATA / f"recipe_{name}_{table}.parquet") for table in ("trials", "history")]
    return spec, results(spec, *tables)


def judged(name: str, rule: str, orders: int = 10, order: str = "shuffled", of: Any = recorded) -> Score:
    spec, found = of(name)
    assert len(found) == (35 if of is recorded else 50)
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


@pytest.mark.parametrize(
    ("name", "orders", "least", "most_lost"),
    [("mnist", 4, 0.2, 1.5), ("fashion_mnist", 4, 0.1, 2), ("digits", 1, 0.2, 0)],
)
def test_pareto_keeps_the_hypervolume_where_the_front_lies_within_the_noise(name, orders, least, most_lost):
    rule = "{type: pareto, min_epochs: 18}" if name == "digits" else "pareto"  # the second of 8 is the 18th of 72
    found = judged(name, rule, orders, of=recipe)
    assert min(found.kept) > 0.999
    assert statistics.mean(found.lost) <= most_lost  # of 14 or, on digits, 9
    assert statistics.mean(found.saved) > least


def test_pareto_saves_most_when_small_models_start_first():
    rule = "{type: pareto, risk: null}"
    first, shuffled = (
        statistics.mean(judged("mnist", rule, 5, order).saved) for order in ("small_first", "shuffled")
    )
    assert first > shuffled + 0.03


@pytest.mark.parametrize("kind", ["median", "hyperband", "successive_halving"])
def test_a_pruner_of_accuracy_alone_loses_the_front(kind):
    assert statistics.mean(lost > 0 for lost in judged("mnist", f"{{type: {kind}, scope: all}}", 3).lost) > 0.5


# --- the command, on a run folder made of the recording


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    spec, _ = recorded("mnist")
    store = Store(tmp_path_factory.mktemp("runs") / "grid")
    store.create(spec.to_yaml())
    trials, history = (pq.read_table(DATA / f"mnist_{table}.parquet") for table in ("trials", "history"))
    trials, history = complete_table(trials, TRIALS).to_pylist(), history.to_pylist()
    for trial_id in {row["trial_id"] for row in trials}:
        rows, curves = ([e for e in entries if e["trial_id"] == trial_id] for entries in (trials, history))
        store.write(trial_id, rows, curves, {})
    return store


def test_replay_prints_a_row_for_each_pruner_and_number_at_once(run, capsys):
    rules = ["--pruner", "pareto", "--pruner", "{type: median, scope: all}"]
    assert main([str(run.root), "--orders", "2", "--at-once", "2,4", "--jobs", "1", *rules]) == 0
    first, _, _, *rows = capsys.readouterr().out.splitlines()
    assert first == f"{run.root}: 35 trials on mnist, 350 QAT epochs; 2 orders, shuffled, 2,4 trials at once"
    assert [row.split()[0] for row in rows] == ["pareto", "4", "median,", "4"]
    assert "100.00%" in rows[0]
    assert "100.00%" not in rows[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: no run folder given"),
        (["--pruner", "paretto"], "error: --pruner paretto: type: unknown 'paretto'; did you mean 'pareto'?"),
        (["--pruner", "{type: pareto, margin: 2}"], "margin: 2 is not allowed (an accuracy, 0 to 1)"),
        (["--pruner", "wilcoxon"], "p_threshold 0.1 is never reached: the least p of 3 seeds is 0.125"),
        (["--order", "small"], "--order: unknown 'small'; did you mean 'small_first'?"),
        (["--at-once", "2,0"], "--at-once must be whole numbers above 0 with commas between, got '2,0'"),
        (["--orders", "0"], "--orders and --jobs must be 1 or more, got 0 and"),
        (["--ordrs", "3"], "unknown option '--ordrs'; did you mean '--orders'?"),
    ],
)
def test_replay_says_what_is_wrong_in_one_line(run, arguments, message, capsys):
    folder = [str(run.root)] if arguments else []
    assert main([*folder, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_replay_refuses_what_holds_no_whole_curves(run, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path} is no run folder: it holds no sweep.yaml\n"
    rows = run.trials().to_pylist()[:3]
    other = Store(tmp_path / "stopped")
    other.create((run.root / "sweep.yaml").read_text())
    stopped = [{k: v for k, v in row.items() if v is not None} | {"state": "pruned"} for row in rows]
    other.write(rows[0]["trial_id"], stopped, [], {})
    assert main([str(other.root)]) == 2
    err = capsys.readouterr().err
    assert "holds 1 trial without a whole curve, stopped early" in err
    assert "`qdtune launch SWEEP --set 'early_terminate={type: none}'`" in err
