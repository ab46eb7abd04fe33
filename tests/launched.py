"""The golden sweep: `qdtune.run` finishes once, for all tests of this process, what a stopped launch has begun.

That launch, of `seen`, had one configuration less and no trackers. The numbers are those of tests/golden; how the
call runs and what it says are tested in commands/test_api.py and sweep/test_driver.py, its trackers in
sweep/test_loggers.py.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import qdtune
from qdtune.commands.loaded_run import LoadedRun
from qdtune.machine import own_folder
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from tests.seen import SWEEP, Seen

WITH_LOGGERS = {"run.loggers": ["mlflow", "wandb", "tensorboard"]}


@dataclass(frozen=True)
class Launched:
    """A call of `qdtune.run`: what it returned and printed, and what it must leave as it was, before and after.

    Attributes:
        home: the folder in which it ran; its run folder is runs/eager.
        kept, whole: of what was done before and after it, as of `finished`.
    """

    home: Path
    kept: dict[str, int]
    whole: dict[str, int]
    run: LoadedRun
    said: str
    before: tuple[Any, ...]
    after: tuple[Any, ...]

    @property
    def folder(self) -> Path:
        return self.home / "runs" / "eager"


def surroundings() -> tuple[Any, ...]:
    """What a call of `qdtune.run` must leave as it was."""
    mask = os.umask(0)
    os.umask(mask)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return dict(os.environ), mask, handlers, os.getcwd(), "ray" in sys.modules


@contextmanager
def environment_for_ray(folder: Path) -> Iterator[None]:
    """The environment of a user who has set nothing of Ray's but a token, with a short path for Ray's files."""
    (folder / "token").write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch, own_folder() as scratch:
        for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_", "WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        patch.setenv("RAY_TMPDIR", scratch)
        yield


def launch_eager(stopped: Seen, home: Path) -> Launched:
    """Finishes the sweep in a copy of where it was stopped, without the traps, in a thread beside an event loop."""
    assert stopped.code == 130, (stopped.out, stopped.err)
    shutil.copytree(stopped.folder, home / "runs" / "eager", ignore=list_traps)
    kept = finished(home)

    async def run() -> LoadedRun:
        return await asyncio.to_thread(qdtune.run, SWEEP, overrides=WITH_LOGGERS)

    with environment_for_ray(home), pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        before, said = surroundings(), io.StringIO()
        with redirect_stdout(said):
            found = asyncio.run(run())
        return Launched(home, kept, finished(home), found, said.getvalue(), before, surroundings())


def list_traps(folder: str, names: list[str]) -> list[str]:
    paths = [Path(folder, name) for name in names]
    return [path.name for path in paths if path.is_file() and path.read_bytes().startswith(b"\x80")]


def planned(content: bytes | None = None) -> list[Configuration]:
    """The configurations of the sweep."""
    return plan(loads(SWEEP.read_bytes() if content is None else content, "eager.yaml")).trials


def finished(home: Path) -> dict[str, int]:
    """trial_id -> time of last change of the file with the result of that configuration of the sweep."""
    ids = {trial.trial_id for trial in planned()}
    paths = (home / "runs" / "eager" / "trials").glob("*.parquet")
    return {path.stem: path.stat().st_mtime_ns for path in paths if path.stem in ids}
