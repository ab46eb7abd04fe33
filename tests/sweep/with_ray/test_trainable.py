"""Trials on a real Ray: their share of a GPU, a search space used by hand, lost workers, what is stopped early."""

import math
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import optuna
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from qdtune.datasets.load import load
from qdtune.spec.groups import Resources
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.pareto_table import final_ids
from qdtune.sweep.placement import Node, Placement, place_trials
from tests.sweep.with_ray.untrained import untrained

pytestmark = pytest.mark.timeout(300)  # beside other tests, on a machine that may be slow
SWEEP = b"""
version: 1
name: byhand
parameters:
  depth: {values: [1, 2]}
  weight_bits: {values: [1, 4]}
  hidden: {values: [8, [6, 5]]}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 2}}
"""


HALF = ["parameters.depth={value: 2}"]


def tuner_for(kind, space, tmp_path, callbacks=(), **tuning):
    from ray import tune

    return tune.Tuner(
        kind,
        param_space=space,
        tune_config=tune.TuneConfig(**tuning),
        run_config=tune.RunConfig(
            name="t", storage_path=str(tmp_path), verbose=0, callbacks=list(callbacks),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )  # fmt: skip


def test_two_halves_of_a_gpu_run_at_once_and_three_do_not(ray_here, tmp_path):
    from ray import tune
    from ray.util import placement_group_table

    from qdtune.sweep.trainable import set_share

    @ray_here.remote(num_cpus=0)
    class Door:
        """Counts who is inside; opens when two are and a third stands before it, unable to get in."""

        def __init__(self):
            self.inside = self.most = 0
            self.opened = False

        def enter(self):
            self.inside += 1
            self.most = max(self.most, self.inside)

        def is_open(self):
            waiting = [g for g in placement_group_table().values() if g["state"] == "PENDING"]
            self.opened = self.opened or (self.inside >= 2 and bool(waiting)) or self.inside >= 3
            return self.opened

        def leave(self):
            self.inside -= 1
            return self.most

    class Waits(tune.Trainable):
        def setup(self, config):
            self.door = config["door"]

        def step(self):
            import ray

            ray.get(self.door.enter.remote())
            while not ray.get(self.door.is_open.remote()):
                time.sleep(0.05)
            return {"most": ray.get(self.door.leave.remote()), "done": True}

    place = place_trials(Resources(gpu=0.5, cpu=1), [Node(5, 1)])
    assert (place.per_gpu, place.concurrent) == (2, 2)
    door = Door.remote()
    grid = tuner_for(set_share(Waits, place), {"door": door, "n": tune.grid_search([0, 1, 2])}, tmp_path).fit()
    assert max(result.metrics["most"] for result in grid) == 2


class NearActor:
    """An object in the place of an actor, for trials of this process: it needs no process of its own."""

    def __init__(self, ray, held):
        self.ray, self.held = ray, held

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self.ray.put(getattr(self.held, name)(*given)))


def trial_parameters(ray, tmp_path, spec, is_near=False):
    from qdtune.store.warmups import WarmupFolder

    data, _ = load(["synthetic"], tmp_path, 128)
    folder = str(tmp_path / "warmup")
    if is_near:
        warmups = NearActor(ray, WarmupFolder(folder))
    else:
        warmups = ray.remote(WarmupFolder).options(num_cpus=0).remote(folder)
    return {"spec": spec, "data": data, "warmups": warmups, "stacks": str(tmp_path)}


@pytest.fixture(scope="module")
def by_hand(ray_here, tmp_path_factory):
    """The results of an ordinary Tuner over the sweep, with one worker that trains one trial after the other."""
    from qdtune.sweep import trainable
    from qdtune.sweep.search_space import param_space

    class QATTrial(trainable.QATTrial):
        def _start(self):
            for report in super()._start():
                yield report | {"title": Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode()}

    folder, spec = tmp_path_factory.mktemp("byhand"), loads(SWEEP, "byhand.yaml", HALF)
    place = Placement(gpu=0.125, cpu=1, per_gpu=8, concurrent=8, notes=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainable, "QATTrial", QATTrial)
        kind = trainable.make_trainable(place, **trial_parameters(ray_here, folder, spec))
    assert kind.__name__ == "QATTrial"
    return tuner_for(kind, param_space(spec), folder, reuse_actors=True, max_concurrent_trials=1).fit()


def test_param_space_is_an_ordinary_search_space(by_hand):
    got = {row["trial_id"]: row["size_bytes"] for result in by_hand for row in result.metrics["rows"]}
    assert got == {trial.trial_id: trial.sizes.size_bytes for trial in plan(loads(SWEEP, "byhand.yaml", HALF)).trials}


def test_a_worker_is_named_by_the_configuration_that_it_trains_now(by_hand):
    titles = {result.metrics["title"] for result in by_hand}
    assert titles == {f"ray::QATTrial({trial.label})" for trial in plan(loads(SWEEP, "byhand.yaml", HALF)).trials}
    assert len({result.metrics["pid"] for result in by_hand}) < len(titles)


def swept(ray, tmp_path, spec, kind, place):
    """A sweep with `kind` for its trainable, to its end: the queue that was asked and the store that was filled."""
    from ray import tune

    from qdtune.search.queue import Queue
    from qdtune.search.study import Study
    from qdtune.store.results import results
    from qdtune.store.store import Store
    from qdtune.sweep.driver import _tune
    from qdtune.sweep.pace import Start
    from qdtune.sweep.progress import SweepProgress
    from qdtune.sweep.recorder import Recorder
    from qdtune.sweep.trainable import QATTrial, set_share
    from qdtune.terminal import console

    parameters = trial_parameters(ray, tmp_path, spec)
    store = Store(tmp_path / "run")
    earlier = results(spec, store.trials(), store.history())
    queue = Queue(spec, plan(spec).trials, Study(spec, store.root / "study.journal"), earlier)
    epochs = {"warmup": spec.train.warmup.epochs, "qat": spec.train.qat.epochs}
    with SweepProgress(console(), queue.total, Start(), {"depth"}, epochs) as progress:
        actors = {"warmups": parameters["warmups"], "paused": parameters.get("paused")}
        recorder = Recorder(queue, store, progress, known={}, signals=[], stacks=tmp_path, **actors)
        sizes = {"cpu": place.cpu, "gpu": 0.0}
        whole = tune.with_parameters(kind or QATTrial, **sizes, **parameters)
        _tune(spec, set_share(whole, place), place, recorder, str(tmp_path))
        recorder.close()
    if recorder.error:
        raise recorder.error
    return queue, store


@pytest.mark.parametrize("is_short", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_lost_worker_is_replaced_and_every_result_stored(ray_here, tmp_path, monkeypatch, is_short):
    """One trial kills its worker in its first epoch: the others go on, and it starts again as attempt 2.

    In the short one all share one warm-up: it was training it, and those that wait for it hold every place. In the
    long one trials train.
    """
    from qdtune.sweep.trainable import QATTrial

    one_warmup = ["parameters={weight_bits: {values: [1, 2, 3, 4, 5]}}", "model.hidden=[8]"]
    spec = loads(SWEEP, "byhand.yaml", one_warmup if is_short else [])
    trials = plan(spec).trials
    mark = tmp_path / "killed"

    class Mortal(untrained() if is_short else QATTrial):
        def step(self):
            report = super().step()
            if report["phase"] == "warmup" and not mark.exists():
                with suppress(FileExistsError), mark.open("x") as file:  # the first to get here, whichever it is
                    file.write(self.config["trial_id"])
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            return report

    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "2")  # to be set back, for the sweep sets it itself
    place = Placement(gpu=0.5, cpu=1, per_gpu=2, concurrent=2, notes=())  # two places, on the one logical GPU
    queue, store = swept(ray_here, tmp_path, spec, Mortal, place)
    rows = store.trials()
    assert final_ids(rows) == {trial.trial_id for trial in trials}
    assert rows.num_rows == 2 * len(trials)
    attempts = dict(zip(rows["trial_id"].to_pylist(), rows["attempt"].to_pylist(), strict=True))
    assert {trial_id for trial_id, n in attempts.items() if n == 2} == {mark.read_text()}
    assert isinstance(store.history(), pa.Table)
    assert store.history().num_rows == 2 * 3 * len(trials)  # seeds x epochs, no epoch twice
    assert set(optuna_states(store)) == {"COMPLETE"}
    assert (queue.left, queue.total, queue.over) == (0, len(trials), True)


def optuna_states(store):
    """How often each state occurs in the two studies of the journal, as another process reads them."""
    return Counter(trial.state.name for study in studies(store) for trial in study.trials)


def studies(store):
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(store.root / "study.journal")))
    return [optuna.load_study(study_name=name, storage=storage) for name in ("byhand", "byhand-curves")]


# What the seeds score in every epoch, by bits; 3 loses its worker, 4 raises, 5 diverges in its first QAT epoch.
LEVELS = {1: 0.6, 2: 0.55, 3: 0.9, 4: 0.9, 5: 0.9, 6: 0.7, 7: 0.65, 8: 0.6}
PRUNED = [
    "parameters={weight_bits: {values: [7, 3, 1, 5, 8, 2, 6, 4]}}",
    "model.hidden=[8]",
    "train.qat.epochs=4",
    "early_terminate={type: pareto, margin: 0.02, min_epochs: 2, risk: null}",
    "run={max_failures: 0, max_concurrent_trials: 1}",
]


def test_a_pruned_sweep_ends_in_order_whatever_befalls_its_trials(ray_here, tmp_path, monkeypatch):
    """Trials one at a time, small ones first, that report what was written down for them."""

    class Scripted(untrained(lambda bits, epoch: None if (bits, epoch) == (5, 1) else LEVELS[bits])):
        def step(self):
            report = super().step()
            if (self.config["weight_bits"], report.get("phase"), report.get("epoch")) == (3, "qat", 2):
                os.kill(os.getpid(), signal.SIGKILL)
            return report

        def _reports_of(self, trial):
            for report in super()._reports_of(trial):
                if (trial.weight_bits, report["phase"], report["epoch"]) == (4, "qat", 3):
                    raise ValueError("no way")
                yield report

    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")
    spec = loads(SWEEP, "byhand.yaml", PRUNED)
    trials = {trial.weight_bits: trial for trial in plan(spec).trials}
    assert list(trials) == [1, 2, 3, 4, 5, 6, 7, 8]
    place = Placement(gpu=0.125, cpu=1, per_gpu=8, concurrent=1, notes=())
    queue, store = swept(ray_here, tmp_path, spec, Scripted, place)

    table = {row["weight_bits"]: row for row in store.write_pareto().to_pylist()}
    states = {bits: table[bits]["state"] for bits in sorted(table)}
    assert states == dict(
        enumerate(["ok", "pruned", "failed", "failed", "diverged", "ok", "pruned", "pruned"], start=1)
    )
    assert {bits for bits, row in table.items() if row["is_pareto"]} == {1, 6}
    kept = {bits for bits, trial in trials.items() if store.weights(trial.trial_id)}
    assert kept == {bits for bits, state in states.items() if state == "ok"}
    assert {bits: row["pruned_by"] for bits, row in table.items() if row["pruned_by"]} == {
        2: trials[1].trial_id,
        7: trials[6].trial_id,
        8: trials[6].trial_id,
    }
    rows = store.trials().to_pylist()
    assert {row["test_accuracy"] is None for row in rows if row["state"] == "pruned"} == {True}
    errors = {row["weight_bits"]: row["error"] for row in rows if row["state"] == "failed"}
    assert errors[3].startswith("worker lost 1 times: ")
    assert errors[4] == "ValueError: no way"
    epochs = Counter()
    for entry in store.history().filter(pc.equal(store.history()["phase"], "qat")).to_pylist():
        epochs[entry["trial_id"]] += 0.5  # two seeds
    assert {bits: epochs[trial.trial_id] for bits, trial in trials.items()} == dict(
        enumerate([4, 2, 1, 2, 1, 4, 2, 2], start=1)
    )

    expected = {"ok": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "diverged": "FAIL"}
    for study in studies(store):
        found = {trial.user_attrs["trial_id"]: trial for trial in study.trials}
        assert len(study.trials) == len(found) == 8
        for bits, trial in trials.items():
            told = found[trial.trial_id]
            assert told.state.name == expected[states[bits]]
            assert told.user_attrs["state"] == states[bits]
            assert told.user_attrs.get("pruned_by") == table[bits]["pruned_by"]
    assert (queue.left, queue.over) == (0, True)

    again = Counter(trial.weight_bits for trial in queue_of(spec, store).waiting)
    assert again == {3: 1, 4: 1}  # what may end otherwise another time, and nothing else


def queue_of(spec, store):
    """What another launch of the same sweep would do."""
    from qdtune.search.queue import Queue
    from qdtune.search.study import Study
    from qdtune.store.results import results

    return Queue(spec, plan(spec).trials, Study(spec), results(spec, store.trials(), store.history()))


def trial_by_hand(kind, config, trial_info=None, **parameters):
    """A trainable that is set up without Tune."""
    trial = kind.__new__(kind)
    trial.config, trial._trial_info = config, trial_info
    trial.setup(config, **parameters, cpu=1, gpu=0.0)
    return trial


def reports_of(ray, tmp_path, spec, monkeypatch, **changes):
    """The reports of one trial whose trainable is stepped by hand, without Tune."""
    from qdtune.sweep.trainable import QATTrial

    parameters = trial_parameters(ray, tmp_path, spec, is_near=True)
    trial = trial_by_hand(QATTrial, plan(spec).trials[0].cells, **parameters)
    for name, value in changes.items():
        monkeypatch.setattr(f"qdtune.training.train.{name}", value)
    reports = [trial.step()]
    while not reports[-1]["done"]:
        reports.append(trial.step())
    return reports


def test_a_trial_over_its_time_ends_as_timeout(ray_here, tmp_path, monkeypatch):
    spec = loads(SWEEP, "byhand.yaml", ["run.trial_timeout_s=1e-6"])
    (report,) = reports_of(ray_here, tmp_path, spec, monkeypatch)
    assert (report["state"], report["error"]) == ("timeout", "not finished after 1e-06 s (run.trial_timeout_s)")


def test_a_mistake_in_training_ends_as_failed_and_out_of_memory_as_oom(ray_here, tmp_path, monkeypatch):
    import torch

    def broken(error):
        def run(*arguments):
            yield {"phase": "qat", "epoch": 1}
            raise error

        return run

    spec = loads(SWEEP, "byhand.yaml")
    reports = reports_of(ray_here, tmp_path, spec, monkeypatch, train_configuration=broken(ValueError("no\nway")))
    ended = {"done": True, "mean_val_accuracy": pytest.approx(math.nan, nan_ok=True)}
    assert reports[-1] == {"state": "failed", "error": "ValueError: no way"} | ended
    reports = reports_of(
        ray_here, tmp_path, spec, monkeypatch, train_configuration=broken(torch.OutOfMemoryError("2 GiB"))
    )
    assert reports[-1] == {"state": "oom", "error": "OutOfMemoryError: 2 GiB"} | ended


def test_reports_hold_the_numbers_that_schedulers_of_ray_compare(ray_here, tmp_path, monkeypatch):
    reports = reports_of(ray_here, tmp_path, loads(SWEEP, "byhand.yaml"), monkeypatch)
    assert [report["qat_epoch"] for report in reports] == [0, 1, 2]
    means = [sum(report["val_accuracy"]) / 2 for report in reports]
    assert [report["mean_val_accuracy"] for report in reports] == pytest.approx(means)


@pytest.mark.parametrize("ending", ["cleanup", "reset_config", "fault"])
def test_a_trial_that_ends_in_its_warmup_leaves_it_to_others(ray_here, tmp_path, monkeypatch, ending):
    from qdtune.sweep.trainable import QATTrial

    spec = loads(SWEEP, "byhand.yaml", ["train.warmup.epochs=2", "run.stall_timeout_s=100"])
    configuration = plan(spec).trials[0]
    parameters = trial_parameters(ray_here, tmp_path, spec, is_near=True)
    trial = trial_by_hand(QATTrial, configuration.cells, SimpleNamespace(trial_id="first"), **parameters)
    open_files = len(os.listdir("/proc/self/fd"))
    report = trial.step()
    assert (report["phase"], report["epoch"], report["done"]) == ("warmup", 1, False)

    def ask():
        return ray_here.get(parameters["warmups"].claim.remote(configuration.warmup_id, "second"))

    assert ask() == ("wait", None)
    if ending == "cleanup":
        trial.cleanup()
    elif ending == "reset_config":
        assert trial.reset_config(configuration.cells)
    else:
        monkeypatch.setattr(trial, "_show", lambda: 1 / 0)
        assert trial.step()["error"].startswith("ZeroDivisionError")
    assert ask() == ("train", None)
    assert trial._stack is None
    assert len(os.listdir("/proc/self/fd")) <= open_files + 1  # torch may keep one


def test_the_dashboard_shows_the_configuration(ray_here, tmp_path):
    from qdtune.sweep.trainable import QATTrial

    trial = QATTrial.__new__(QATTrial)
    trial.config = plan(loads(SWEEP, "byhand.yaml")).trials[-1].cells
    assert repr(trial) == "QATTrial(first d2 w4 identity h6-5)"


def shares(ray, tmp_path, monkeypatch, capsys, measure):
    """The share of a GPU that `auto` becomes where `measure` stands for the GPU, and what was printed."""
    from qdtune.search.queue import Queue
    from qdtune.search.study import Study
    from qdtune.sweep import gpu_share
    from qdtune.sweep.cluster import Cluster
    from qdtune.terminal import console

    monkeypatch.setattr(gpu_share, "_measure", measure)
    spec = loads(SWEEP, "byhand.yaml", ["resources.gpu=auto"])
    data, _ = load(["synthetic"], tmp_path, 128)
    queue = Queue(spec, plan(spec).trials, Study(spec), [])
    cluster = Cluster(nodes=(Node(16), Node(16, 1)), dashboard=None)
    found = gpu_share.measure_share(spec, cluster, data, queue, [], console())
    return found.gpu, capsys.readouterr().out


def test_an_automatic_share_is_what_the_largest_trial_was_measured_to_take(ray_here, tmp_path, monkeypatch, capsys):

    def measure(trial, data, compile):
        assert (trial.depth, trial.hidden, compile) == (1, (8,), "auto")
        return {"memory": 200, "total": 1000, "busy": 0.3}

    gpu, told = shares(ray_here, tmp_path, monkeypatch, capsys, measure)
    assert gpu == 0.25
    assert "kept the GPU busy 30% of the time: 1/4 each" in told


def test_a_share_that_cannot_be_measured_is_a_whole_gpu(ray_here, tmp_path, monkeypatch, capsys):
    def measure(trial, data, compile):
        raise RuntimeError("CUDA error: no such thing")

    gpu, told = shares(ray_here, tmp_path, monkeypatch, capsys, measure)
    assert gpu == 1.0
    assert "it cannot be measured (RuntimeError: CUDA error: no such thing): a whole GPU for each trial" in told


def test_out_of_memory_is_seen_behind_the_error_that_hid_it(ray_here, tmp_path, monkeypatch):
    import torch

    def run(*arguments):
        try:
            raise torch.OutOfMemoryError("2 GiB")
        finally:
            raise RuntimeError("capture has ended")
        yield

    reports = reports_of(ray_here, tmp_path, loads(SWEEP, "byhand.yaml"), monkeypatch, train_configuration=run)
    assert reports[-1]["state"] == "oom"
