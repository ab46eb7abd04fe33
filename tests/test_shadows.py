"""Files in the current folder that hide modules: named in one line before they do harm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdtune.shadows import PACKAGES, find_shadow
from tests.test_architecture import HOMES

ROOT = Path(__file__).parent.parent
MEND = "(rename it, or start the command in another folder)"


def start(folder: Path, *module: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("module", ["qdtune", "qdtune.launch"])
@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("random", "Python's module random"),
        ("dataclasses", "Python's module dataclasses"),
        ("torch", "the package torch"),
    ],
)
def test_a_file_that_hides_a_module_is_named(tmp_path: Path, module: str, name: str, hidden: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')")
    assert start(tmp_path, module, "--help") == (2, f"error: {name}.py in the current folder hides {hidden} {MEND}\n")


def test_a_current_folder_that_was_deleted_is_one_line(tmp_path: Path) -> None:
    code = "import os, sys; from qdtune.__main__ import main; "
    code += f"os.rmdir({str(tmp_path)!r}); sys.exit(main(['report', 'a']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    said = "error: the current folder must exist, and was deleted (go to another folder)\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_a_folder_hides_a_module_if_it_is_a_package(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    assert find_shadow(str(tmp_path)) is None
    (tmp_path / "numpy" / "__init__.py").touch()
    assert find_shadow(str(tmp_path)) == f"numpy in the current folder hides the package numpy {MEND}"


@pytest.mark.parametrize(
    "name", ["model.py", "data.py", "torch.yaml", "torch", "test/__init__.py", "tests/__init__.py"]
)
def test_other_files_hide_nothing(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert find_shadow(str(tmp_path)) is None
    assert find_shadow(str(tmp_path / "gone")) is None


def test_every_package_that_we_import_is_guarded() -> None:
    assert set(HOMES) - set(PACKAGES) == set()


def test_nothing_is_hidden_in_the_folder_of_the_project() -> None:
    assert find_shadow(str(ROOT)) is None
