"""Trials that train nothing: their workers do without torch, which is most of what a worker costs to start.

What they ask of their sweep, and tell it, is what a training does; `test_paused` and `test_own_code` really train.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone


def untrained(score: Callable[[int, int], float | None] = lambda bits, epoch: 0.5) -> type:
    """A `QATTrial` whose replicas all score what `score` says of their bits and QAT epoch, which is 0 in the warm-up.

    They diverge where it says None. A class made here travels to the workers whole: they need not find this file.
    """
    from qdtune.model.signed_file import sign_file
    from qdtune.spec.plan import make_trial
    from qdtune.sweep.kept_files import SharedWarmups
    from qdtune.sweep.trainable import QATTrial

    class Untrained(QATTrial):
        def _notes(self):
            return {}

        def _start(self):
            trial = make_trial(self._spec, self.config)
            self._warmups = SharedWarmups(self._folder, trial.trial_id, self._watch)
            return self._reports_of(trial)

        def _reports_of(self, trial):
            began, history = datetime.now(timezone.utc), []

            def add_epoch(phase, epoch, accuracy):
                entry = {"phase": phase, "epoch": epoch, "train_loss": accuracy and 1.0, "val_accuracy": accuracy}
                history.extend({"seed": seed, "seconds": 0.1} | entry for seed in trial.seeds)
                told = {"phase": phase, "epoch": epoch, "seconds": 0.1, "history": list(history)}
                return told | {name: [entry[name]] * len(trial.seeds) for name in ("train_loss", "val_accuracy")}

            is_kept = self._warmups.claim(trial.warmup_id) is not None
            for epoch in range(1, trial.warmup.epochs + 1):
                report = add_epoch("warmup", epoch, score(trial.weight_bits, 0))
                if not is_kept:
                    yield report
            if not is_kept:
                self._warmups.keep(trial.warmup_id, b"trained")
            for epoch in range(1, trial.qat.epochs + 1):
                accuracy = score(trial.weight_bits, epoch)
                report = add_epoch("qat", epoch, accuracy)
                is_over = accuracy is None or epoch == trial.qat.epochs
                report["rows"] = [
                    trial.columns
                    | {
                        "seed": seed,
                        "state": "diverged" if accuracy is None else "ok",
                        "epochs": len(history) // len(trial.seeds),
                    }
                    | {"val_accuracy": accuracy, "test_accuracy": accuracy if is_over else None}
                    | {"started_at": began, "finished_at": datetime.now(timezone.utc)}
                    for seed in trial.seeds
                ]
                if is_over:
                    weights = sign_file({"__metadata__": {"qdtune.trial_id": trial.trial_id}}, b"")
                    yield report | {"weights": None if accuracy is None else weights, "done": True}
                    return
                yield report

    return Untrained
