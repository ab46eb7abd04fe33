"""A launch that finishes a sweep that was stopped: with other bit widths, and with trackers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from tests import seen

# Of the first launch only the first trials have ended, for small networks come first; 32 bits are new.
SWEEP = seen.SWEEP.replace("[1, 2, 3, 4, 5, 6, 7, 8]", "[1, 8, 32]")
WITH_LOGGERS = ("--set", "run.loggers=[mlflow, wandb, tensorboard]")


@dataclass(frozen=True)
class Resumed:
    """A folder in which the sweep was finished.

    Attributes:
        home: the folder; its run folder is runs/tiny.
        kept: of the stopped launch, as of `finished`.
        whole: the same after the second launch.
        code, out, err: how the second launch ended and what it said.
    """

    home: Path
    kept: dict[str, int]
    whole: dict[str, int]
    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "tiny"


def launch_again(stopped: seen.Seen, home: Path) -> Resumed:
    """Finishes the sweep in a copy of where it was stopped, without the traps."""
    assert stopped.code == 130, (stopped.out, stopped.err)
    shutil.copytree(stopped.folder, home / "runs" / "tiny", ignore=list_traps)
    kept = finished(home)
    code, out, err = run_launch(home, *WITH_LOGGERS)
    return Resumed(home, kept, finished(home), code, out, err)


def list_traps(folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder, name) for name in names]
    return [path.name for path in paths if path.is_file() and path.read_bytes().startswith(b"\x80")]


def run_launch(home: Path, *options: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a launch in that folder."""
    (home / "token").write_text("0" * 64)
    (home / "tiny.yaml").write_text(SWEEP)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_", "WANDB_", "MLFLOW_"))}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(home / "token"), "COLUMNS": "80", "WANDB_MODE": "offline"}
    line = [sys.executable, "-m", "qdtune.launch", "tiny.yaml", *options, "--no-dashboard"]
    done = subprocess.run(line, cwd=home, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, done.stdout, done.stderr


def planned(sweep: str = SWEEP) -> list[Configuration]:
    """The configurations of the sweep."""
    return plan(loads(sweep.encode(), "tiny.yaml").resolve("synthetic")).trials


def finished(home: Path) -> dict[str, int]:
    """trial_id -> time of last change of the file with the result of that configuration of the sweep."""
    ids = {trial.trial_id for trial in planned()}
    paths = (home / "runs" / "tiny" / "trials").glob("*.parquet")
    return {path.stem: path.stat().st_mtime_ns for path in paths if path.stem in ids}
