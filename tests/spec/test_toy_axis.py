"""An axis added through its one place: the rest of the package follows without an edit."""

import pytest

from tests.golden import trees
from tests.toy import copy_package, evaluate, run

ENTRY = """TOY = Axis(
    "toy",
    _named("plain", "fancy"),
    "plain",
    "quantisation",
    "string",
    "a toy",
    place=99,
    since=99,
    before="plain",
    idle=({"depth": 1},),
    head="toys",
    tag="{}",
    asked="{} toys",
)
AXES = ("""
SCRIPT = """
import json
from qdtune.spec.axes import head_of
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.search.samplers import make_distribution
from qdtune.store.columns import SCHEMA_VERSION, pareto_schema, trials_schema
from qdtune.sweep.search_space import param_space

file = b"version: 1\\nname: a\\nparameters: {depth: {values: [1, 2]}, toy: {values: [plain, fancy]}}\\n"
file += b"exclude: [{depth: 2, toy: plain}]\\ndata: {dataset: synthetic, val_size: 100}\\n"
spec = loads(file, "a.yaml")
planned = plan(spec)
found = {
    "labels": [one.label for one in planned.trials],
    "ids": len({one.trial_id for one in planned.trials}),
    "warmups": planned.warmups,
    "twins": planned.twins,
    "columns": ["toy" in schema.names for schema in (trials_schema(), pareto_schema())],
    "version": SCHEMA_VERSION,
    "head": head_of("toy"),
    "tune": param_space(spec)["toy"],
    "optuna": list(make_distribution(spec.axes["toy"]).choices),
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with one entry more, and the file that holds it is the only one that differs."""
    edits = {"AXES = (\n": f"{ENTRY}\n", ")\n\nAXIS_NAMES": "    TOY,\n)\n\nAXIS_NAMES"}
    folder = tmp_path_factory.mktemp("tree")
    return copy_package(folder, edits={"spec/axes.py": edits}, beside=("sweeps", "tests/golden", "tests/data"))


def test_everything_follows_from_the_entry(tree):
    found = evaluate(tree, SCRIPT)
    assert sorted(found["labels"]) == ["d1 w32 identity", "d1 w32 identity fancy", "d2 w32 identity fancy"]
    assert (found["ids"], found["warmups"], found["twins"]) == (3, 2, 1)  # at depth 1 it changes nothing
    assert (found["columns"], found["version"], found["head"]) == ([True, True], 99, "toys")
    assert found["tune"] == {"grid_search": ["plain", "fancy"]}
    assert found["optuna"] == ["plain", "fancy"]


def test_what_was_there_before_keeps_its_ids(tree):
    found = run(tree, "-c", "from tests.golden import trees; print('\\n'.join(trees.ids()))").stdout
    assert found.split("\n")[:-1] == trees.IDS.read_text().splitlines()


def test_an_older_run_is_read_with_what_was_before(tree):
    run_folder = str(tree / "tests" / "golden" / "runs" / "eager")
    code = f"import qdtune; run = qdtune.load({run_folder!r}); print(set(run.pareto['toy'].to_pylist()))"
    assert run(tree, "-c", code).stdout.strip() == "{'plain'}"
