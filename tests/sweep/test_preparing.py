"""What trials do instead of training: said by workers, kept beside the run folder, asked for by the driver."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qdtune.sweep import watches
from qdtune.sweep.kept_files import KeptFiles
from qdtune.sweep.watches import ASK_S, PreparingWatch


def test_a_trial_that_ends_or_is_lost_prepares_nothing(tmp_path: Path) -> None:
    files = KeptFiles(str(tmp_path / "run"))
    files.set_preparing("a", "compiling")
    files.set_preparing("b", "waiting for its warm-up")
    files.set_preparing("b", None)
    assert files.list_preparing() == {"a": "compiling"}
    files.release("a")
    assert files.list_preparing() == {}


def test_the_driver_never_waits_for_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    ready: list[Any] = []
    now = [1000.0]
    monkeypatch.setattr(watches, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watches.ray, "wait", lambda refs, timeout: (ready, refs))
    monkeypatch.setattr(watches.ray, "get", lambda ref: ref)
    asked: list[None] = []

    def ask() -> dict[str, str]:
        asked.append(None)
        return {"a": "compiling"}

    watch = PreparingWatch(SimpleNamespace(list_preparing=SimpleNamespace(remote=ask)))
    assert [watch.poll(), watch.poll()] == [None, None]
    ready.append(1)
    assert [watch.poll(), watch.poll(), len(asked)] == [{"a": "compiling"}, None, 1]
    now[0] += ASK_S
    assert [watch.poll(), len(asked), PreparingWatch(None).poll()] == [None, 2, None]
