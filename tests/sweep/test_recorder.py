"""What Ray Tune asks of the recorder while it begins no step: writes are retried, no trial starts after a signal."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.folder import StorageError
from qdtune.store.store import Store
from qdtune.sweep import recorder as module
from qdtune.sweep.progress import SweepProgress
from qdtune.sweep.recorder import RETRY_S, Recorder
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
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder without Ray, on a disk that is full, at 1000 s of a clock that a test moves."""
    monkeypatch.setattr(module, "SweepMetrics", MagicMock())
    monkeypatch.setattr(module.time, "monotonic", lambda: recorder.now)
    spec = loads(SWEEP, "written.yaml")
    queue = Queue(spec, plan(spec).trials, Study(spec, tmp_path / "study.journal"), [])
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "monotonic", lambda: 1000.0)
        progress = SweepProgress(console(), queue.total, 0, set(), {"warmup": 1, "qat": 3})
        recorder = Recorder(queue, FullDisk(tmp_path / "written"), progress, MagicMock(), {}, [])
    recorder.now = 1000.0
    return recorder


def end(recorder: Recorder) -> None:
    """Starts the next trial and ends it, as Tune tells it."""
    trial = recorder.next()
    assert trial is not None
    tuned = SimpleNamespace(config={"trial_id": trial.trial_id}, num_failures=0)
    recorder.on_trial_start(0, [], tuned)
    rows, history = outcome(trial, 3, lambda *report: None)
    recorder.on_trial_result(0, [], tuned, {"rows": rows, "history": history, "done": True})


def test_a_pending_write_is_retried_where_tune_only_asks_for_the_next_trial(recorder: Recorder) -> None:
    """All running trials have ended: Tune waits in its searcher, for up to 600 s, and begins no step meanwhile."""
    end(recorder)
    recorder.store.is_full = False
    assert recorder.next() is None, "not before it is time"
    assert recorder.unwritten
    recorder.now += RETRY_S
    assert recorder.next() is not None
    assert (len(recorder.unwritten), len(recorder.store.ids())) == (0, 1)


def test_a_storage_that_goes_on_failing_ends_the_sweep_where_tune_only_asks(recorder: Recorder) -> None:
    end(recorder)
    for _ in range(40):
        recorder.now += RETRY_S
        assert recorder.next() is None
    assert isinstance(recorder.error, StorageError)
    assert recorder.over


def test_a_stopped_sweep_hands_out_no_trial(recorder: Recorder) -> None:
    recorder.signals.append(signal.SIGINT)
    assert recorder.next() is None
    assert recorder.over
    assert not recorder.queue.running
