"""What goes wrong while a sweep runs, provoked for real; `test_kills.py` has the blows that end it.

Trials train on two places of a small Ray of our own, as in test_trial; what is broken is said by a file or a class.
"""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from qdtune.model.signed_file import find_fault
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.folder import StorageError
from qdtune.store.store import Store
from qdtune.sweep.placement import Placement
from tests.sweep.with_ray.test_trainable import SWEEP, swept
from tests.sweep.with_ray.untrained import untrained

pytestmark = pytest.mark.timeout(300)  # beside other tests, on a machine that may be slow
PLACE = Placement(gpu=0.5, cpu=1, per_gpu=2, concurrent=2, notes=())
SIX = ["parameters={weight_bits: {values: [1, 2, 3, 4, 5, 6]}}", "model.hidden=[8]"]
ONE_WORKER = [*SIX, "run.max_concurrent_trials=1"]  # a second one takes seconds to start


def by_bits(store, column):
    return {row["weight_bits"]: row[column] for row in store.trials().to_pylist()}


@pytest.fixture(autouse=True)
def two_at_a_time(monkeypatch):
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "2")  # to be set back, for the sweep sets it itself


@pytest.mark.slow
def test_a_trial_that_falls_silent_is_tried_once_more_and_then_a_timeout(ray_here, tmp_path):
    """One sleeps, one sits in C with the interpreter's lock held: neither can be asked to end."""
    from qdtune.sweep.trainable import QATTrial

    log = tmp_path / "attempts"

    class Stuck(QATTrial):
        def _start(self):
            with log.open("a") as file:
                file.write(f"{self.config['weight_bits']}\n")
            return self._until_stuck(super()._start())

        def _until_stuck(self, reports):
            bits = self.config["weight_bits"]
            for report in reports:
                if report["phase"] == "qat" and bits == 2:
                    time.sleep(1e6)
                if report["phase"] == "qat" and bits == 3:
                    import ctypes

                    ctypes.PyDLL(None).sleep(1_000_000)
                yield report

    spec = loads(SWEEP, "byhand.yaml", [*SIX, "run.stall_timeout_s=10", "run.max_failures=5"])
    _, store = swept(ray_here, tmp_path, spec, Stuck, PLACE)
    states = by_bits(store, "state")
    assert states == {bits: "timeout" if bits in (2, 3) else "ok" for bits in range(1, 7)}, by_bits(store, "error")
    errors = by_bits(store, "error")
    for bits in (2, 3):
        assert errors[bits].startswith('no report for 10 s (run.stall_timeout_s), in File "'), errors
        assert errors[bits].endswith("in _until_stuck")
    assert Counter(log.read_text().split()) == {str(bits): 2 if bits in (2, 3) else 1 for bits in range(1, 7)}
    assert by_bits(store, "attempt")[2] == 2


@pytest.mark.slow
def test_a_trial_over_its_time_ends_even_inside_an_epoch(ray_here, tmp_path, monkeypatch):
    from qdtune.sweep import trainable

    class Long(trainable.QATTrial):
        def _start(self):
            trainable.GRACE_S = 1.0
            return self._until_stuck(super()._start())

        def _until_stuck(self, reports):
            for report in reports:
                if self.config["weight_bits"] == 4 and report["phase"] == "qat":
                    time.sleep(1e6)
                yield report

    spec = loads(SWEEP, "byhand.yaml", [*SIX, "run.trial_timeout_s=15"])
    _, store = swept(ray_here, tmp_path, spec, Long, PLACE)
    assert by_bits(store, "state") == {bits: "timeout" if bits == 4 else "ok" for bits in range(1, 7)}
    assert by_bits(store, "error")[4].startswith("not finished after 15 s (run.trial_timeout_s), in File ")


@pytest.mark.slow
def test_a_worker_lost_as_it_takes_over_a_trial_is_a_failure_like_any_other(ray_here, tmp_path):
    from qdtune.sweep.trainable import QATTrial

    lost = tmp_path / "lost"

    class Lost(QATTrial):
        def reset_config(self, new_config):
            if new_config["weight_bits"] == 5 and not lost.exists():
                lost.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().reset_config(new_config)

    spec = loads(SWEEP, "byhand.yaml", [*SIX, "run.max_failures=1"])
    _, store = swept(ray_here, tmp_path, spec, Lost, PLACE)
    assert lost.exists()
    assert by_bits(store, "state") == dict.fromkeys(range(1, 7), "ok")
    assert by_bits(store, "attempt") == {bits: 1 + (bits == 5) for bits in range(1, 7)}


@pytest.mark.slow
def test_a_worker_that_always_dies_is_a_failed_row_and_one_short_of_memory_an_oom(ray_here, tmp_path):
    from qdtune.sweep.trainable import QATTrial

    class Dying(QATTrial):
        def step(self):
            if self.config["weight_bits"] == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step()

    spec = loads(SWEEP, "byhand.yaml", [*SIX, "run.max_failures=1"])
    _, store = swept(ray_here, tmp_path, spec, Dying, PLACE)
    assert by_bits(store, "state") == {bits: "failed" if bits == 2 else "ok" for bits in range(1, 7)}
    assert by_bits(store, "error")[2].startswith("worker lost 2 times: ")


def test_trials_that_all_fail_alike_end_the_sweep_at_the_fifth(ray_here, tmp_path, capsys):
    from qdtune.sweep.trainable import QATTrial

    class Broken(QATTrial):
        def _start(self):
            raise ValueError("the same\x1b]0;x\x07[bold] mistake")

    spec = loads(SWEEP, "byhand.yaml", ONE_WORKER)
    queue, store = swept(ray_here, tmp_path, spec, Broken, PLACE)
    assert len(store.ids()) == 5
    assert set(by_bits(store, "state").values()) == {"failed"}
    told = capsys.readouterr().out
    assert "the first 5 trials failed alike, so the sweep ends: ValueError: the same" in told
    assert "\x1b" not in told
    assert len(queue.results) == len(store.ids())


class Flaky(Store):
    """A run folder whose disk is full, or whose server is gone, for some attempts to write a result."""

    failures = 0

    def write(self, *arguments):
        if Flaky.failures > 0:
            Flaky.failures -= 1
            raise StorageError("the disk must be writable, got No space left on device")
        return super().write(*arguments)


def test_a_storage_that_fails_for_a_while_loses_nothing(ray_here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("qdtune.store.store.Store", Flaky)
    monkeypatch.setattr(Flaky, "failures", 7)
    monkeypatch.setattr("qdtune.sweep.result_writer.RETRY_S", 0.2)
    spec = loads(SWEEP, "byhand.yaml", ONE_WORKER)
    queue, store = swept(ray_here, tmp_path, spec, untrained(), PLACE)
    assert (queue.left, Flaky.failures) == (0, 0)
    assert by_bits(store, "state") == dict.fromkeys(range(1, 7), "ok")
    assert set(by_bits(store, "attempt").values()) == {1}
    assert all(find_fault(store.weights(trial_id) or b"", older=False) is None for trial_id in store.ids())
    told = capsys.readouterr().out
    assert told.count("No space left on device (trying again for 120 s)") == 1


@pytest.mark.slow
def test_a_storage_that_goes_on_failing_ends_the_sweep_and_says_so(ray_here, tmp_path, monkeypatch):
    monkeypatch.setattr("qdtune.store.store.Store", Flaky)
    monkeypatch.setattr(Flaky, "failures", 10**9)
    monkeypatch.setattr("qdtune.sweep.result_writer.RETRY_S", 0.1)
    monkeypatch.setattr("qdtune.sweep.result_writer.PATIENCE_S", 1.0)
    spec = loads(SWEEP, "byhand.yaml", SIX)
    with pytest.raises(StorageError, match="No space left on device"):
        swept(ray_here, tmp_path, spec, None, PLACE)
    monkeypatch.setattr(Flaky, "failures", 0)
    queue, store = swept(ray_here, tmp_path, spec, None, PLACE)
    assert queue.left == 0
    assert {trial.trial_id for trial in plan(spec).trials} == store.ids()
    assert isinstance(store.root, Path)
