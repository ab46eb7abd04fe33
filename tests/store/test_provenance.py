"""The commit of a row is that of qdtune, and of no repository around it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from qdtune.store.provenance import PACKAGE, find_commit


def make_repository(folder: Path) -> str:
    folder.mkdir()
    (folder / "a").touch()
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def test_commit_is_of_the_checkout_of_the_package(tmp_path: Path) -> None:
    commit = make_repository(tmp_path / "repository")
    (tmp_path / "repository" / "qdtune").mkdir()
    assert len(commit) == 40
    assert find_commit(tmp_path / "repository" / "qdtune") == commit


def test_commit_of_a_repository_around_a_virtual_environment_is_not_taken(tmp_path: Path) -> None:
    make_repository(tmp_path / "project")
    package = tmp_path / "project" / ".venv" / "lib" / "site-packages" / "qdtune"
    package.mkdir(parents=True)
    assert find_commit(package) == ""
    assert find_commit(tmp_path) == ""


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE"])
def test_commit_is_not_that_of_git_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    before = find_commit(PACKAGE)
    commit = make_repository(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv(variable, str(tmp_path / "other" / (".git" if variable == "GIT_DIR" else "")))
    assert find_commit(PACKAGE) == before != commit
