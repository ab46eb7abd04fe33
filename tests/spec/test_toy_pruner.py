"""A pruner added through its dataclass and its builder: the rest of the package follows without an edit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATACLASS = """@dataclass(frozen=True)
class Toy(Pruner):
    name: ClassVar = "toy"
    text: ClassVar = "trials below `floor` from epoch `min_epochs` on"

    floor: Measure = 0.25
    min_epochs: EpochCount = 2


PRUNERS: tuple[type[Pruner], ...] = ("""
BUILDER = """

from qdtune.spec.pruners import Toy


class ToyPruner(BasePruner):
    def __init__(self, floor: float, min_epochs: int) -> None:
        self.floor, self.min_epochs = floor, min_epochs

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        last = trial.last_step
        return last is not None and last >= self.min_epochs and trial.intermediate_values[last] < self.floor


@build_pruner.register
def _build_toy(wanted: Toy, epochs: int) -> BasePruner:
    return ToyPruner(wanted.floor, wanted.min_epochs)
"""
SCRIPT = """
import json
from qdtune.messages import SpecError
from qdtune.search.pruners import make_pruner
from docs.tables import pruner_table
from qdtune.spec.sweep_file import loads

TEXT = "version: 1\\nname: a\\nparameters: {depth: {value: 1}}\\ndata: {dataset: synthetic, val_size: 100}\\n"

def read(keys):
    return loads(f"{TEXT}early_terminate:\\n  type: toy\\n  {keys}\\n".encode(), "a.yaml")

def refusal(keys):
    try:
        read(keys)
    except SpecError as error:
        return [(problem.place.line, str(problem)) for problem in error.problems]

spec = read("min_epochs: 1")
canonical = spec.to_yaml()
found = {
    "options": spec.early_terminate.options,
    "canonical": [line for line in canonical.splitlines() if line.startswith("early_terminate")],
    "again": loads(canonical.encode(), "again.yaml") == spec,
    "value": refusal("floor: 3"),
    "foreign": refusal("margin: 0.1"),
    "unknown": refusal("flor: 0.1"),
    "built": vars(make_pruner(spec.early_terminate, 10)),
    "table": [line for line in pruner_table().splitlines() if "toy" in line],
}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with one pruner more; only its dataclass and its builder are new."""
    folder = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "qdtune", folder / "qdtune", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "data" / "runs" / "v5", folder / "run")
    path = folder / "qdtune" / "spec" / "pruners.py"
    text = path.read_text()
    start, end = "PRUNERS: tuple[type[Pruner], ...] = (", "    Wilcoxon,\n)"
    assert (text.count(start), text.count(end)) == (1, 1)
    path.write_text(text.replace(start, DATACLASS).replace(end, "    Wilcoxon,\n    Toy,\n)"))
    path = folder / "qdtune" / "search" / "pruners.py"
    path.write_text(path.read_text() + BUILDER)
    return folder


def run(tree, *argv):
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(
        [sys.executable, *argv], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_follows_from_the_dataclass_and_its_builder(tree):
    found = json.loads(run(tree, "-c", SCRIPT))
    assert found["options"] == {"floor": 0.25, "min_epochs": 1}
    assert found["canonical"] == ["early_terminate: {type: toy, min_epochs: 1, floor: 0.25}"]
    assert found["again"]
    ((line, text),) = found["value"]
    assert (line, "early_terminate.floor: 3 is not allowed (an accuracy, 0 to 1)" in text) == (7, True)
    ((_, text),) = found["foreign"]
    assert "early_terminate: margin is no key of type toy (floor, min_epochs)" in text
    ((line, text),) = found["unknown"]
    assert (line, "unknown key 'flor'; did you mean 'floor'? (type, floor, min_epochs)" in text) == (7, True)
    assert found["built"] == found["options"]
    assert found["table"] == [
        "| `toy` | `floor: 0.25`, `min_epochs: 2` | trials below `floor` from epoch `min_epochs` on |"
    ]


def test_replay_judges_it(tree):
    rules = ["--pruner", "toy", "--pruner", "{type: toy, floor: 1, min_epochs: 1}"]
    text = run(tree, "-m", "qdtune", "replay", "run", "--orders", "1", "--at-once", "2", "--jobs", "1", *rules)
    rows = [line.split() for line in text.splitlines() if line.startswith("toy")]
    assert [(row[0], row[-5]) for row in rows] == [("toy", "0.0%"), ("toy,", "50.0%")]
