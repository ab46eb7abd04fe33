"""A storage that fails: results are written later, whatever Ray Tune does; no trial starts after a signal."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.columns import costs_in
from qdtune.store.folder import StorageError
from qdtune.store.results import result_of
from qdtune.store.store import Store
from qdtune.sweep import recorder as module
from qdtune.sweep import result_writer
from qdtune.sweep.pace import Start
from qdtune.sweep.progress import SweepProgress
from qdtune.sweep.recorder import Recorder
from qdtune.terminal import console
from tests.fake import outcome

SWEEP = b"""
version: 1
name: written
parameters: {weight_bits: {values: [1, 4]}}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 3}}
"""


class FullDisk(Store):
    """A run folder that cannot be written while `is_full`."""

    is_full = True

    def write(self, *arguments):
        if self.is_full:
            raise StorageError("the disk must be writable, got No space left on device")
        return super().write(*arguments)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Recorder]:
    """A recorder without Ray, on a disk that is full; a parameter is what the sweep file says in addition."""
    monkeypatch.setattr(module, "SweepMetrics", MagicMock())
    monkeypatch.setattr(result_writer, "RETRY_S", 0.02)
    spec = loads(SWEEP + getattr(request, "param", b""), "written.yaml")
    queue = Queue(spec, plan(spec).trials, Study(spec, tmp_path / "study.journal"), [])
    progress = SweepProgress(console(), queue.total, Start(), set(), {"warmup": 1, "qat": 3})
    recorder = Recorder(queue, FullDisk(tmp_path / "written"), progress, MagicMock(), {}, [])
    yield recorder
    recorder.close()


def until(so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end(recorder: Recorder, **more: str) -> None:
    """Starts the next trial and ends it, as Tune tells it."""
    trial = recorder.next()
    assert trial is not None
    finish(recorder, trial, **more)


def finish(recorder: Recorder, trial: Configuration, **more: str) -> None:
    tuned = SimpleNamespace(config={"trial_id": trial.trial_id}, num_failures=0)
    recorder.on_trial_start(0, [], tuned)
    rows, history = outcome(trial, 3, lambda *report: None)
    recorder.on_trial_result(0, [], tuned, {"rows": rows, "history": history, "done": True} | more)


def test_a_pending_write_is_retried_while_tune_calls_nobody(recorder: Recorder) -> None:
    """All running trials have ended: Tune waits in its searcher, for up to 600 s, and begins no step meanwhile."""
    end(recorder)
    assert recorder.next() is None
    assert not recorder.over
    recorder.store.is_full = False
    until(lambda: len(recorder.store.ids()) == 1)
    assert recorder.queue.running, "only the recorder's own thread notes that a trial has ended"
    until(lambda: not recorder.writer.is_behind)
    assert recorder.next() is not None
    assert len(recorder.queue.results) == 1


@pytest.mark.parametrize("recorder", [b"objectives: [val_accuracy, macs, size_bytes]\n"], indirect=True)
def test_the_front_that_is_shown_is_over_the_costs_of_the_sweep(recorder: Recorder) -> None:
    recorder.store.is_full = False
    for _ in range(2):
        end(recorder)
        until(lambda: not recorder.writer.is_behind)
    recorder.close()
    assert [cost.name for cost in costs_in(recorder.progress.front)] == ["macs", "size_bytes"]


def test_a_storage_that_goes_on_failing_ends_the_sweep_while_tune_calls_nobody(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_writer, "PATIENCE_S", 0.1)
    end(recorder)
    assert recorder.error is None
    until(lambda: isinstance(recorder.error, StorageError))
    assert recorder.next() is None
    assert recorder.over


def test_trials_that_end_while_the_storage_fails_are_stored_in_order(recorder: Recorder) -> None:
    first, second = recorder.next(), recorder.next()
    for trial in (first, second):
        finish(recorder, trial)
    assert recorder.store.ids() == set()
    recorder.store.is_full = False
    until(lambda: not recorder.writer.is_behind)
    recorder.next()
    assert list(recorder.queue.results) == [first.trial_id, second.trial_id]


def test_a_storage_that_fails_again_at_the_end_is_told(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chance to write: one result fits, the next one does not, and no attempt follows."""
    monkeypatch.setattr(result_writer, "RETRY_S", 60)
    for trial in (recorder.next(), recorder.next()):
        finish(recorder, trial)
    write, store = Store.write, recorder.store

    def write_one(*arguments: Any) -> None:
        if store.ids():
            raise StorageError("the disk must be writable, got No space left on device")
        write(store, *arguments)

    store.write = write_one
    recorder.close()
    assert len(store.ids()) == len(recorder.queue.results) == 1
    assert isinstance(recorder.error, StorageError)


def test_a_storage_that_hangs_holds_up_neither_tune_nor_a_signal(recorder: Recorder) -> None:
    end(recorder)
    begun, over = threading.Event(), threading.Event()
    write = Store.write

    def hang(*arguments: Any) -> None:
        begun.set()
        over.wait(30)
        write(recorder.store, *arguments)

    recorder.store.write = hang  # as a server that is gone
    try:
        assert begun.wait(30)
        recorder.signals.append(signal.SIGINT)
        assert recorder.next() is None
        assert recorder.over
    finally:
        over.set()


@pytest.mark.parametrize("risk", [None, 0.1])
@pytest.mark.parametrize("state", ["ok", "pruned", "failed"])
def test_only_the_checkpoints_of_trials_that_may_be_released_stay(
    recorder: Recorder, risk: float | None, state: str
) -> None:
    rule = {"type": "pareto", "risk": risk, "margin": 0.0, "min_epochs": 1}
    recorder.queue.spec = loads(SWEEP, "written.yaml", [f"early_terminate={json.dumps(rule)}"])
    recorder.store.is_full = False
    recorder.paused = MagicMock()
    trial = recorder.next()
    tuned = SimpleNamespace(config={"trial_id": trial.trial_id}, num_failures=0)
    recorder.on_trial_start(0, [], tuned)
    rows, history = outcome(trial, 3, lambda *report: None)
    report = {"rows": rows, "history": history, "done": True}
    if state == "failed":
        report = {"state": "failed", "error": "no way", "done": True}
    if state == "pruned":
        recorder.queue.study.live[trial.trial_id].pruned_by = "another"
    recorder.on_trial_result(0, [], tuned, report)
    assert recorder.queue.results[trial.trial_id].state == state
    told = [call.args for call in recorder.paused.forget_paused.remote.call_args_list]
    assert told == ([] if (state, risk) == ("pruned", 0.1) else [([trial.trial_id],)])


def test_the_pruner_learns_the_epochs_before_a_checkpoint_once(recorder: Recorder) -> None:
    trial = recorder.next()
    _, history = outcome(trial, 3, lambda *report: None)
    whole = [{**entry, "epoch": epoch} for epoch in (1, 2, 3) for entry in history[:2]]
    for epoch in (2, 3):
        report = {"epoch": epoch, "val_accuracy": [0.1, 0.2], "history": whole[: 2 * epoch], "resumed_at": 1}
        assert not recorder.stops(trial.trial_id, report)
    known = recorder.queue.study.curves.trials[0].intermediate_values
    first = sum(entry["val_accuracy"] for entry in history[:2]) / 2
    assert known == pytest.approx({1: first, 2: 0.15, 3: 0.15})


def test_epochs_that_a_checkpoint_held_are_not_trained_twice(recorder: Recorder) -> None:
    """The first worker went on from epoch 1 and was lost after epoch 2, from which the next one went on."""
    recorder.store.is_full = False
    trial = recorder.next()
    rows, history = outcome(trial, 3, lambda *report: None)
    stopped = [row | {"state": "pruned"} for row in rows]
    recorder.queue.results[trial.trial_id] = result_of(trial, stopped, history)
    tuned = SimpleNamespace(config={"trial_id": trial.trial_id}, num_failures=0)
    recorder.on_trial_start(0, [], tuned)
    numbers = {"val_accuracy": [0.1, 0.2], "phase": "qat", "history": history, "done": False}
    recorder.on_trial_result(0, [], tuned, numbers | {"epoch": 2, "resumed_at": 1})
    recorder.on_trial_result(0, [], tuned, {"rows": rows, "history": history, "done": True, "resumed_at": 2})
    assert recorder.queue.twice == 3 - 1


def test_a_stopped_sweep_hands_out_no_trial(recorder: Recorder) -> None:
    recorder.signals.append(signal.SIGINT)
    assert recorder.next() is None
    assert recorder.over
    assert not recorder.queue.running


def test_a_signal_of_a_batch_system_is_the_users_although_tune_takes_it(recorder: Recorder) -> None:
    noted, ended, before = [], [], signal.getsignal(signal.SIGUSR1)
    recorder.noting = lambda number, frame: noted.append(number)
    try:
        signal.signal(signal.SIGUSR1, lambda number, frame: ended.append(number))  # as Tune does
        recorder.setup()
        signal.raise_signal(signal.SIGUSR1)
        assert (noted, ended) == ([signal.SIGUSR1], [])
        recorder.signals.append(signal.SIGUSR1)
        recorder.on_step_begin(1, [])
        assert (noted, ended) == ([signal.SIGUSR1], [signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_note_of_the_trials_is_one_line(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.store.is_full = False
    for _ in range(2):
        end(recorder, note="a training step cannot be compiled: g++")
    told = capsys.readouterr().out
    assert told.count("a training step cannot be compiled: g++: training runs uncompiled, slowly") == 1
