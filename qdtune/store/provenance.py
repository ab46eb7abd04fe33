"""The provenance of a row: versions, git commit, the user's code."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

from qdtune import __version__, plugins


def make_provenance() -> dict[str, str]:
    """The metadata of a row's file: versions, the user's code and, in a git checkout, the commit."""
    found = {"qdtune": __version__} | {name: version(name) for name in ("torch", "ray", "pyarrow")}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    own = {f"qdtune.plugin.{s.module}": f"{s.path} sha256:{s.sha256}" for s in plugins.sources()}
    return {f"qdtune.version.{name}": v for name, v in found.items()} | {"qdtune.git_commit": commit} | own
