"""The notebook of the docs: it runs as it stands, answers its two questions, and is kept without outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from qdtune.machine import own_folder
from qdtune.sweep.prepared import LaunchOptions
from tests.trained import train_here

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"
SECONDS = 240  # that a cell may take on a busy machine
pytestmark = pytest.mark.timeout(SECONDS + 60)


# What the notebook trains, smaller; whatever else it says is executed as it stands.
SMALLER = {'"seeds": [0, 1, 2, 3, 4]': '"seeds": [0, 1]', '"min_steps": 300': '"min_steps": 60'}
Outputs = dict[str, list[nbformat.NotebookNode]]


def execute(folder: Path, changes: dict[str, str] | None = None) -> Outputs:
    """The outputs of each cell of code, by its source, executed in a folder.

    Args:
        folder: the working folder.
        changes: old text and new text of the cell with the sweep, which has to be trained in the folder then.
    """
    (folder / "token").write_text("0" * 64)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    sweep = next(cell for cell in notebook.cells if "SWEEP =" in cell.source)
    for old, new in (changes or {}).items():
        assert sweep.source.count(old) == 1
        sweep.source = sweep.source.replace(old, new)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    with own_folder() as scratch:
        environment |= {
            "IPYTHONDIR": str(folder / "ipython"),
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_TMPDIR": scratch,
        }
        if changes:
            names: dict[str, Any] = {}
            exec(sweep.source, names)
            content = json.dumps(names["SWEEP"]).encode()
            train_here(LaunchOptions(sweep="sweep", runs_dir=str(folder / "runs"), content=content))
        client = NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        )
        client.execute(env=environment)
    return {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """The notebook where its sweep, which is smaller, is trained already."""
    return execute(tmp_path_factory.mktemp("notebook"), SMALLER)


@pytest.mark.slow  # with Ray; below the same without it, and test_api.py has a call that trains
def test_the_notebook_trains_as_it_stands(tmp_path: Path) -> None:
    executed = execute(tmp_path)
    assert "6/6 done" in printed(executed["run = qdtune.run(SWEEP)"])
    check_answers(executed)
    check_front(executed)
    (front,) = executed["run"]
    rows = front.data["application/vnd.vegalite.v6+json"]["datasets"]["configurations"]
    assert min(row["val"] for row in rows) > 0.8  # the recipe learns, at 1 bit too


def printed(outputs: list[nbformat.NotebookNode]) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_the_notebook_runs_and_answers_both_questions(executed: Outputs) -> None:
    assert "all done before" in printed(executed["run = qdtune.run(SWEEP)"])
    check_answers(executed)


def test_the_notebook_shows_the_front(executed: Outputs) -> None:
    check_front(executed)


def check_answers(executed: Outputs) -> None:
    assert [
        output.text for outputs in executed.values() for output in outputs if output.get("name") == "stderr"
    ] == []
    mistake = printed(next(outputs for source, outputs in executed.items() if source.startswith("try:")))
    assert mistake.startswith("overrides: train.qat.epochs: 0 is not allowed")
    (answers,) = executed["answers = run.answers()\nanswers"]
    assert "Does an activation between the factors help?" in answers.data["text/markdown"]
    depths, activations = (
        printed(executed[f"for one in answers.{axis}:\n    print(one.sentence)"]) for axis in ("depth", "activation")
    )
    assert len(depths.splitlines()) == 4
    assert len(activations.splitlines()) == 2
    assert "refused" not in depths + activations
    assert all(" points (" in line for line in [*depths.splitlines(), *activations.splitlines()])


def check_front(executed: Outputs) -> None:
    (front,) = executed["run"]
    assert front.output_type == "execute_result"
    rows = front.data["application/vnd.vegalite.v6+json"]["datasets"]["configurations"]
    assert len(rows) == 6
    assert "Pareto front on digits: " in front.data["text/plain"]
    assert "<table>" in front.data["text/html"]


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell["id"] for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert NOTEBOOK.stat().st_size < 20_000
