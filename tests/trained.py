"""A sweep that is trained in this process, without Ray, for tests that need a finished run and no launch.

A launch of a few small trials costs some 15 s of CPU time, most of it to start Ray and its workers.
"""

from __future__ import annotations

from qdtune.spec.configuration import Configuration
from qdtune.store.provenance import make_provenance
from qdtune.store.store import Store
from qdtune.sweep.prepare import prepare_launch, read_data
from qdtune.sweep.prepared import LaunchOptions
from qdtune.terminal import console
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from tests.training.test_cohort import CPU
from tests.training.test_train import Kept


def train_here(options: LaunchOptions) -> Store:
    """The run folder of a sweep, all of whose trials are trained: the same launch finds everything done."""
    prepared, samples, _ = read_data(prepare_launch(options), console())
    store, data, warmups = Store(prepared.folder), Tensors.of(samples, CPU), Kept()
    with store.lock():
        store.create(prepared.spec.to_yaml())
        for trial in prepared.plan.trials:
            train_one(store, trial, data, warmups)
        store.write_pareto()
    return store


def train_one(store: Store, trial: Configuration, data: Tensors, warmups: Kept) -> None:
    """Trains a trial and stores its result as a sweep does."""
    *_, last = train_configuration(trial, data, warmups, "never")
    rows = [row | {"attempt": 1} for row in last["rows"]]
    history = [entry | {"trial_id": trial.trial_id} for entry in last["history"]]
    store.write(trial.trial_id, rows, history, make_provenance(), last["weights"])
