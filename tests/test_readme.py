"""What the README and the sweep files promise: commands, files and snippets that work as they stand."""

import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

from qdtune.commands.launch import main
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.pareto_table import table_front
from qdtune.store.store import Store

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
REFERENCE = ROOT / "tests" / "benchmarks" / "reference.py"
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_files_are_planned_and_every_key_is_explained(path, tmp_path, capsys):
    assert main([str(path), "--dry-run", "--runs-dir", str(tmp_path)]) == 0
    assert path.stem in capsys.readouterr().out
    assert load(path).name == path.stem
    keys = [line for line in path.read_text().splitlines() if re.match(r"\s*(- )?\{?\w+:", line)]
    assert [line for line in keys if "#" not in line] == []


def test_tables_of_the_reference_fronts_are_those_of_their_files():
    found = subprocess.run([sys.executable, REFERENCE], capture_output=True, text=True, check=True).stdout
    tables = found.strip().split("\n\n")
    assert len(tables) == 6
    for table in tables:
        assert table in README


def test_grid_is_the_size_the_readme_says():
    spec = load(ROOT / "sweeps" / "grid.yaml")
    assert len(plan(spec.resolve("mnist")).trials) == 35
    assert "35 configurations" in README


def test_files_named_in_the_readme_and_the_docs_exist():
    for page in (README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))):
        for name in re.findall(r"`([\w/]+\.(?:py|yaml))`", page):
            folders = (ROOT, ROOT / "qdtune", ROOT / "sweeps", ROOT / "qdtune" / "model")
            assert any((folder / name).exists() for folder in folders), name


def test_every_package_is_on_the_map():
    for path in (ROOT / "qdtune").glob("*/__init__.py"):
        assert f"`{path.parent.name}/`" in README
        assert f"`{path.parent.name}/`" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_ci_runs_the_readmes_test_command():
    block = README.split("<!-- test command -->\n```sh\n")[1].split("\n```")[0]
    assert "pip install torch torchvision -e '.[test]'" in block  # in one resolve, by name
    assert block.endswith("pytest")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()


def rows(trial, accuracy):
    now = datetime.now(timezone.utc)
    common = trial.columns | {"state": "ok", "epochs": 15, "finished_at": now, "test_accuracy": 0.5}
    return [common | {"seed": seed, "val_accuracy": accuracy + 0.01 * seed} for seed in trial.seeds]


def test_analysis_snippets_give_the_printed_front(tmp_path, monkeypatch, capsys):
    trials = plan(load(ROOT / "sweeps" / "grid.yaml").resolve("mnist")).trials
    store = Store(tmp_path / "runs" / "grid")
    for n, trial in enumerate(trials):
        store.write(trial.trial_id, rows(trial, 0.5 + (7 * n % 35) / 100), [], {})
    front = table_front(store.write_pareto())
    assert 2 <= front.num_rows <= 10
    analysis, example = README.split("<!-- analysis -->")[1].split("<!-- load -->")
    snippets = re.findall(r"```python\n(.*?)```", analysis, re.DOTALL)
    assert [snippet.split()[1] for snippet in snippets] == ["duckdb", "pandas", "polars"]
    monkeypatch.chdir(tmp_path)
    for snippet in snippets:
        exec(compile(snippet, "README", "exec"), {})  # as a reader would
        out = capsys.readouterr().out
        sizes = [int(m) for m in re.findall(r"^[^\n]*?\b(\d{4,5})\b", out, re.MULTILINE)]
        assert sizes == front["size_bytes"].to_pylist(), out
    store.create(load(ROOT / "sweeps" / "grid.yaml").resolve("mnist").to_yaml())
    (snippet,) = re.findall(r"```python\n(.*?)```", example, re.DOTALL)
    exec(compile(snippet, "README", "exec"), {})
    out = capsys.readouterr().out
    small = [size for size in front["size_bytes"].to_pylist() if size <= 8192]
    assert [int(m) for m in re.findall(r"^\d+ +(\d{4}) ", out, re.MULTILINE)] == small
    assert "finished: 35 ok; 105 rows, 0 epochs" in out
    assert out.count("At 2 bits (absmean, orthogonal) depth 2") == 1
    assert "best\n  Within 8,192 bytes the best is depth" in out
