"""A sweep whose trials take no time and need no Ray: plan, queue, study and store joined as in `session`.

As a command it is one launch: `python fake.py FOLDER SWEEP_FILE`, a line per result once that is stored.
"""

import random
import sys
from datetime import datetime, timezone
from pathlib import Path
from unittest import mock

from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.results import result_of, results
from qdtune.store.store import Store


def outcome(trial, epochs, report):
    """Rows and history of a trial, drawn from its id: the same in every launch."""
    draw, now = random.Random(trial.trial_id), datetime.now(timezone.utc)
    best, by, history, accuracies = draw.uniform(0.5, 1), None, [], []
    for epoch in range(1, epochs + 1):
        accuracies = [best * epoch / epochs - draw.random() / 100 for _ in trial.seeds]
        for seed, accuracy in zip(trial.seeds, accuracies, strict=True):
            entry = {"trial_id": trial.trial_id, "seed": seed, "phase": "qat", "epoch": epoch, "seconds": 0.1}
            history.append(entry | {"val_accuracy": accuracy, "train_loss": 1.0})
        if epoch < epochs and (by := report(trial.trial_id, epoch, accuracies)):
            break
    end = {"state": "pruned" if by else "ok", "pruned_by": by, "epochs": epoch, "finished_at": now, "attempt": 1}
    rows = [
        trial.columns | end | {"seed": seed, "val_accuracy": a, "test_accuracy": None if by else a}
        for seed, a in zip(trial.seeds, accuracies, strict=True)
    ]
    return rows, history


def launch(folder, spec, told=lambda line: None):
    """One launch: what is missing, until nothing is; the queue, and the table.

    Nothing waits for the disk, which takes most of the time: nobody cuts the power, and of a killed process the
    kernel keeps what was written.
    """
    store = Store(folder)
    with store.lock(), mock.patch("os.fsync"):
        store.create(spec.to_yaml())
        store.pack_files()
        earlier = results(spec, store.trials(), store.history())
        assert store.damaged == []
        queue = Queue(spec, plan(spec).trials, Study(spec, Path(folder) / "study.journal"), earlier)
        while (trial := queue.next()) is not None:
            rows, history = outcome(trial, spec.train.qat.epochs, queue.study.report)
            store.write(trial.trial_id, rows, history, {})
            queue.ended(result_of(trial, rows, history))
            told(trial.trial_id)
        queue.study.close()
        table = store.write_pareto(list(queue.results), spec=spec)
        store.pack_files()
    return queue, table


if __name__ == "__main__":
    launch(sys.argv[1], load(sys.argv[2]), lambda line: print(line, flush=True))
