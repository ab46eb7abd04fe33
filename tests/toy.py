"""A copy of the package with one noun more, which shows that everything else follows from its one place.

A toy test copies the package once, in a fixture of its module, names every edit it makes, and runs the copy in
processes of their own:

    @pytest.fixture(scope="module")
    def tree(tmp_path_factory):
        return copy_package(tmp_path_factory.mktemp("tree"), edits={"spec/axes.py": {"    AUGMENT,\\n)": ...}})
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def copy_package(
    folder: Path,
    *,
    edits: Mapping[str, Mapping[str, str]] | None = None,
    added: Mapping[str, str] | None = None,
    beside: Iterable[str] = (),
) -> Path:
    """The folder with a copy of the package in it, edited.

    Args:
        folder: an empty one.
        edits: old text and new text by file of the package, such as `spec/axes.py`; the old text must occur once.
        added: text by file of the package; it goes to the end of the file, which is made if there is none.
        beside: what else is copied: folders of the project, such as `tests/golden`.
    """
    # Bytecode comes along, because it saves a second; names of bytecode that is being written end in a number.
    ignored = shutil.ignore_patterns("*.pyc.*")
    for name in ("qdtune", *beside):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    if (folder / "tests").is_dir():
        (folder / "tests" / "__init__.py").touch()
    for name, changes in (edits or {}).items():
        path = folder / "qdtune" / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, f"{name} must hold {old!r} once, found {text.count(old)}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    for name, text in (added or {}).items():
        with (folder / "qdtune" / name).open("a", encoding="utf-8") as file:
            file.write(text)
    return folder


def run(tree: Path, *argv: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A Python process on the copy, in its folder; it must end with this exit code.

    Args:
        tree: as of `copy_package`.
        argv: of Python, such as `-m qdtune --help`.
        code: the expected exit code.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "COLUMNS": "80"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, *map(str, argv)]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stdout}{done.stderr}"
    return done


def evaluate(tree: Path, script: str) -> Any:
    """What a script prints as JSON when it runs on the copy."""
    return json.loads(run(tree, "-c", script).stdout)
