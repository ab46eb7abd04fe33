"""An objective added through its one place: constraints, columns, ranks and studies follow without an edit."""

import pytest

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import ACCURACY
from qdtune.sweep.loggers import final_numbers
from tests.toy import ROOT, copy_package, evaluate, run

ENTRY = """TOY = Objective("toy", "{direction}", "steps", "a toy", lambda c: 10 * c.depth, since=99, is_cost=True)
OBJECTIVES = (
"""
SWEEP = """version: 1
name: a
parameters: {depth: {values: [1, 2, 3]}}
data: {dataset: synthetic, val_size: 100}
"""
FRONT = f"{SWEEP}objectives: [val_accuracy, toy]\n"
SCRIPT = f"""
import json
import pyarrow as pa
from qdtune.search.study import Study
from qdtune.spec.objectives import front_values
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.columns import SCHEMA_VERSION, pareto_schema, trials_schema
from qdtune.store.front import front_cells
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.sweep.loggers import final_numbers

spec = loads({FRONT!r}.encode(), "a.yaml")
trials = plan(spec).trials
told = {{"state": "ok", "val_accuracy": 0.9, "test_accuracy": 0.8}}
rows = [one.columns | told | {{"size_bytes": 100, "seed": seed}} for one in trials for seed in (0, 1)]
pareto = aggregate(pa.Table.from_pylist(rows, schema=trials_schema()), bootstrap=True, costs=spec.costs)
study = Study(spec).search
print(json.dumps({{
    "columns": [("toy", pa.int64()) in zip(one.names, one.types) for one in (trials_schema(), pareto_schema())],
    "version": SCHEMA_VERSION,
    "ids": [one.trial_id for one in trials],
    "ranks": dict(zip(pareto["depth"].to_pylist(), pareto["pareto_rank"].to_pylist())),
    "p_front": dict(zip(pareto["depth"].to_pylist(), pareto["p_front"].to_pylist())),
    "table": front_cells(table_front(pareto), {{"depth"}}),
    "study": [[one.name for one in study.directions], study.metric_names],
    "values": [front_values(one, 0.9, spec.costs) for one in trials if one.depth == 3],
    "logged": final_numbers(spec.metric),
}}))
"""


@pytest.fixture(scope="module", params=["minimize", "maximize"])
def direction(request):
    return request.param


@pytest.fixture(scope="module")
def tree(tmp_path_factory, direction):
    """A copy of the package with one objective more, which a sweep file chooses; no file but its own differs."""
    edits = {
        "OBJECTIVES = (\n": ENTRY.format(direction=direction),
        ")\nKNOWN_BEFORE": "    TOY,\n)\nKNOWN_BEFORE",
    }
    folder = copy_package(tmp_path_factory.mktemp("tree"), edits={"spec/objectives.py": edits})
    (folder / "bound.yaml").write_text(f"{SWEEP}constraints: [toy <= 20, toy > 10]\n")
    (folder / "wrong.yaml").write_text(f"{SWEEP}constraints:\n- toy <= 20\n- toys <= 20\n")
    return folder


def test_everything_follows_from_the_entry(tree, direction):
    found = evaluate(tree, SCRIPT)
    best, worst = (1, 3) if direction == "minimize" else (3, 1)
    assert (found["columns"], found["version"]) == ([True, True], 99)
    assert found["ranks"] == {str(best): 1, "2": 2, str(worst): 3}  # their accuracies and bytes are the same
    assert found["p_front"] == {str(best): 1.0, "2": 0.0, str(worst): 0.0}
    heads, rows = found["table"]
    assert heads[:3] == ["bytes", "toy", "depth"]
    assert [row[:3] for row in rows] == [["100", str(10 * best), str(best)]]
    assert found["study"] == [["MAXIMIZE", direction.upper()], ["val_accuracy", "toy"]]
    assert found["values"] == [[0.9, 30]]
    assert found["logged"] == [*final_numbers(ACCURACY), "toy"]
    assert found["ids"] == [one.trial_id for one in plan(loads(SWEEP.encode(), "a.yaml")).trials]


def test_a_constraint_may_name_it(tree):
    told = run(tree, "-m", "qdtune", "launch", "bound.yaml", "--dry-run").stdout
    assert "1 (3 points, 0 excluded, 2 infeasible)" in told
    assert sorted(line.split(maxsplit=1)[1] for line in told.splitlines() if "infeasible  " in line) == [
        "1 by toy <= 20",
        "1 by toy > 10",
    ]


def test_a_constraint_with_a_mistake_says_its_name(tree):
    told = run(tree, "-m", "qdtune", "launch", "wrong.yaml", "--dry-run", code=2).stderr
    assert told.startswith("error: wrong.yaml:7:")
    assert "constraints[1]: 'toys <= 20' is not allowed (like 'size_bytes <= 8192': one of params," in told
    assert ", activation_bytes, ram_bytes, flash_bytes, toy, depth, weight_bits; <= < >= > ==; a number)" in told


def test_a_dry_run_and_a_mistake_name_it(tree):
    (tree / "front.yaml").write_text(FRONT)
    told = run(tree, "-m", "qdtune", "launch", "front.yaml", "--dry-run").stdout
    assert "front over      accuracy and toy\n" in told
    assert "  toy           10 to 30 toy, 3 different\n" in told
    (tree / "front.yaml").write_text(FRONT.replace(", toy]", ", toys]"))
    told = run(tree, "-m", "qdtune", "launch", "front.yaml", "--dry-run", code=2).stderr
    assert "objectives[1]: unknown 'toys'; did you mean 'toy'?" in told


def test_rows_of_an_older_version_read_as_null(tree):
    run_folder = ROOT / "tests" / "golden" / "runs" / "eager"
    code = f"from qdtune.store.store import Store; rows = Store({str(run_folder)!r}).trials()"
    assert run(tree, "-c", f"{code}; print(set(rows['toy'].to_pylist()))").stdout == "{None}\n"
