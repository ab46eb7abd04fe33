"""The sweep that `qdtune.run` trains once for all tests of this process, on a Ray of its own.

Its numbers are those of tests/golden; how it is run and what it says are tested in commands/test_api.py.
"""

from __future__ import annotations

import asyncio
import io
import os
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

SWEEP = Path(__file__).parent / "golden" / "eager.yaml"
OLD = """version: 1
name: eager
parameters: {depth: {value: 1}}
data: {dataset: digits, val_size: 200}
"""  # its results cannot be compared with those of the golden sweep


@dataclass(frozen=True)
class Launched:
    """A call of `qdtune.run`: what it returned and printed, and what it must leave as it was, before and after."""

    run: LoadedRun
    said: str
    before: tuple[Any, ...]
    after: tuple[Any, ...]


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
        for name in [name for name in os.environ if name.startswith(("RAY_", "TUNE_"))]:
            patch.delenv(name)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        patch.setenv("RAY_TMPDIR", scratch)
        yield


def launch_eager(folder: Path) -> Launched:
    """Trains the golden sweep in a thread beside an event loop; an older run of its name exists."""
    runs = folder / "runs"
    (runs / "eager").mkdir(parents=True)
    (runs / "eager" / "sweep.yaml").write_text(OLD)

    async def run() -> LoadedRun:
        return await asyncio.to_thread(qdtune.run, SWEEP, runs_dir=runs, fresh=True)

    with environment_for_ray(folder):
        before, said = surroundings(), io.StringIO()
        with redirect_stdout(said):
            found = asyncio.run(run())
        return Launched(found, said.getvalue(), before, surroundings())
