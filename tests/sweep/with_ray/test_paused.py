"""Checkpoints on a real Ray: a lost worker and a released trial go on where they were, with the numbers of all."""

import os
import signal
from pathlib import Path

import pytest
import torch

from qdtune.datasets.load import load
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.sweep.placement import Placement
from tests.sweep.with_ray import test_trainable
from tests.sweep.with_ray.test_trainable import swept

pytestmark = pytest.mark.timeout(300)
SWEEP = b"""
version: 1
name: paused
parameters:
  depth: {values: [1, 2]}
  weight_bits: {values: [1, 2]}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 4, optimizer: adam, lr: 0.01}}
early_terminate: {type: pareto, margin: 0.0, min_epochs: 1, risk: 0.1}
run: {max_concurrent_trials: 1}
"""
LOST_AFTER = 2  # QAT epochs of the first trial


def undisturbed(spec, folder):
    """trial_id -> the rows and the curve of each trial, trained here and alone."""
    from qdtune.training.tensors import Tensors
    from qdtune.training.train import train_configuration
    from qdtune.training.warmups import NoWarmups

    data, _ = load(["synthetic"], folder, 128)
    tensors, threads, found = Tensors.of(data, torch.device("cpu")), torch.get_num_threads(), {}
    torch.set_num_threads(1)
    for trial in plan(spec).trials:
        *_, report = train_configuration(trial, tensors, NoWarmups())
        found[trial.trial_id] = numbers(report["rows"], report["history"])
    torch.set_num_threads(threads)
    return found


def numbers(rows, history):
    names = ("seed", "state", "train_loss", "val_accuracy", "test_accuracy", "float_val_accuracy", "epochs")
    curve = [(e["seed"], e["phase"], e["epoch"], repr(e["train_loss"]), repr(e["val_accuracy"])) for e in history]
    return sorted(repr([row[name] for name in names]) for row in rows), sorted(curve)


def test_lost_and_released_trials_go_on_from_their_checkpoints(ray_here, tmp_path, monkeypatch):
    from qdtune.sweep.kept_files import KeptFiles
    from qdtune.sweep.trainable import QATTrial

    mark, trained = tmp_path / "killed", tmp_path / "epochs"

    class Mortal(QATTrial):
        def _start(self):
            from qdtune.training import paused

            paused.TRAINING_PER_COST = paused.STOP_PER_COST = 0  # a checkpoint after each epoch, which takes no time
            return super()._start()

        def step(self):
            report = super().step()
            if report.get("phase") == "qat":
                with trained.open("a") as file:
                    file.write(f"{self.config['trial_id']} {report['epoch']}\n")
                if report["epoch"] == LOST_AFTER and not mark.exists():
                    mark.write_text(self.config["trial_id"])
                    os.kill(os.getpid(), signal.SIGKILL)
            return report

    spec = loads(SWEEP, "paused.yaml")
    given = test_trainable.trial_parameters(ray_here, tmp_path, spec)
    files = ray_here.remote(KeptFiles).options(num_cpus=0).remote(str(tmp_path / "run"))
    given |= {"warmups": files, "paused": files}
    monkeypatch.setattr(test_trainable, "trial_parameters", lambda *_: given)
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")  # to be set back, for the sweep sets it itself
    place = Placement(gpu=0.5, cpu=1, per_gpu=1, concurrent=1, notes=())
    queue, store = swept(ray_here, tmp_path, spec, Mortal, place)

    rows, history = store.trials().to_pylist(), store.history().to_pylist()
    expected = undisturbed(spec, tmp_path)
    for trial_id, whole in expected.items():
        own = [[one for one in table if one["trial_id"] == trial_id] for table in (rows, history)]
        assert numbers(*own) == whole
    assert queue.released, "the margin is 0: something was stopped, and with so few results it is released"
    assert queue.twice == 0
    lines = trained.read_text().split("\n")[:-1]
    again = {line for line in lines if lines.count(line) > 1}
    assert again <= {f"{mark.read_text()} {LOST_AFTER}"}, "only the epoch in which the worker was lost"
    assert len(set(lines)) == spec.train.qat.epochs * len(expected)
    attempts = {row["trial_id"]: row["attempt"] for row in rows}
    assert attempts == {one: 1 + (one in queue.released) + (one == mark.read_text()) for one in expected}
    assert ray_here.get(files.find_paused.remote(mark.read_text())) is None  # all that the recorder sent is done now
    assert list((tmp_path / "run" / "paused").iterdir()) == [], "no checkpoint of a finished trial is left"


def test_a_checkpoint_that_cannot_be_kept_fails_no_trial(ray_here, tmp_path):
    from qdtune.sweep import kept_files

    class Broken:
        def keep_paused(self, trial_id, blob):
            raise OSError("no")

    actor = ray_here.remote(Broken).options(num_cpus=0).remote()
    kept_files.SharedPaused(actor).keep("a1", b"numbers")
    assert Path(tmp_path).exists()
