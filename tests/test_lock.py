"""`docker/requirements.txt`: every dependency by version and hash, and no other place to take it from."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "docker" / "requirements.txt").read_text()
ENTRY = re.compile(r"[a-z0-9.-]+==[\w.+!]+( ; [^#\\]+?)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n")


def faults(text: str) -> list[str]:
    """What of a lock file is no requirement with its version and hashes, and no comment."""
    lines = ENTRY.sub("", text).splitlines()
    return [line for line in lines if not line.startswith("#")] + re.findall(r"\S*://\S*|--\w*index\S*", text)


def test_lock_holds_versions_and_hashes_and_nothing_else() -> None:
    assert faults(LOCK) == []
    assert len(ENTRY.findall(LOCK)) > 50


@pytest.mark.parametrize(
    "bad",
    [
        "torch==2.6\n",
        "torch>=2.6 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "torch==2.6 \\\n    --hash=md5:" + "0" * 32 + "\n",
        "--extra-index-url file:///x\n",
        "# from http://mirror/simple\n",
        "torch @ git+https://example.org/torch\n",
        "-e .\n",
    ],
)
def test_lock_is_seen_broken(bad: str) -> None:
    assert faults(LOCK + bad) != []


def locked() -> dict[str, set[str]]:
    """Every locked package with its versions, whatever the marker."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", LOCK, re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(version)
    return found


def test_lock_covers_the_project_file() -> None:
    block = re.search(
        r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL
    )
    assert block
    wanted = [Requirement(text) for text in re.findall(r'^  "(.+?)"', block[1], re.MULTILINE)]
    assert {"torch", "torchvision", "ray", "pyarrow"} <= {requirement.name for requirement in wanted}
    versions = locked()
    for requirement in wanted:
        held = versions.get(canonicalize_name(requirement.name), set())
        assert held, requirement
        assert all(requirement.specifier.contains(version) for version in held), requirement


def test_lock_covers_what_the_dependencies_need() -> None:
    environment = {"extra": ""}
    for name in locked():
        try:
            needed = requires(name) or []
        except ModuleNotFoundError:  # of another system
            continue
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                assert canonicalize_name(requirement.name) in locked(), f"{name} needs {requirement}"
