"""The provenance of a row: versions, git commit, the user's code."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import version
from pathlib import Path

from qdtune import __version__, plugins

PACKAGE = Path(__file__).parent.parent


def make_provenance() -> dict[str, str]:
    """The metadata of a row's file: versions, the user's code and, in a git checkout of qdtune, the commit."""
    found = {"qdtune": __version__} | {name: version(name) for name in ("torch", "ray", "pyarrow")}
    own = {f"qdtune.plugin.{s.module}": f"{s.path} sha256:{s.sha256}" for s in plugins.sources()}
    return {f"qdtune.version.{name}": v for name, v in found.items()} | {"qdtune.git_commit": find_commit()} | own


def find_commit(package: Path = PACKAGE) -> str:
    """The commit of the checkout that `package` lies in, directly below its top level; empty if it lies elsewhere.

    An installed package often lies within a repository of other code, such as one with a virtual environment in it.
    Variables such as GIT_DIR, which git sets in hooks, would name a repository anywhere.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True, env=environment)
        top, commit = done.stdout.splitlines()
        return commit if os.path.samefile(top, package.parent) else ""
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""
