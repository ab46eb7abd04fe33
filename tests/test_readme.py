"""What the README and the sweep files promise; tests/test_docs_blocks.py runs the blocks of README and docs."""

import re
from pathlib import Path

import pytest

from qdtune.commands.launch import main
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_sweep_files_are_planned_and_every_key_is_explained(path, tmp_path, capsys):
    assert main([str(path), "--dry-run", "--runs-dir", str(tmp_path)]) == 0
    assert path.stem in capsys.readouterr().out
    assert load(path).name == path.stem
    keys = [line for line in path.read_text().splitlines() if re.match(r"\s*(- )?\{?\w+:", line)]
    assert [line for line in keys if "#" not in line] == []


def test_grid_is_the_size_the_readme_says():
    spec = load(ROOT / "sweeps" / "grid.yaml")
    assert len(plan(spec.resolve("mnist")).trials) == 50
    assert re.search("50 configurations . 5 seeds", README)


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_every_package_is_on_the_map():
    for path in (ROOT / "qdtune").glob("*/__init__.py"):
        assert f"`{path.parent.name}/`" in README
        assert f"`{path.parent.name}/`" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_ci_runs_the_readmes_test_command():
    block = README.split("<!-- test command -->\n```sh\n")[1].split("\n```")[0]
    assert "pip install torch torchvision -e '.[test]'" in block  # in one resolve, by name
    assert block.endswith("pytest")
    assert "<!-- test command -->" in (ROOT / ".ci" / "run").read_text()
