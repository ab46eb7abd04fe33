"""What happens in Ray Tune, as it reaches the store and the progress display."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import tune

from qdtune import __version__
from qdtune.progress import SweepProgress
from qdtune.spec import Trial
from qdtune.store import StorageError, Store
from qdtune.tables import aggregate, table_front

FRONT_EVERY_S = 2.0  # between two looks at the front while trials finish


class Recorder(tune.Callback):
    """Writes every finished trial into the store and tells the progress display.

    Nothing it does may raise into Tune, which would abort the sweep: a storage error is kept in `error` and ends
    the sweep in order, as a signal does.

    Args:
        store: where results go.
        trials: what will be trained.
        progress: the display.
        warmups: the actor that holds the warm-ups.
        known: rows of `store.trials` that were there before.
        signals: received so far; the first one ends the sweep.
    """

    def __init__(
        self,
        store: Store,
        trials: list[Trial],
        progress: SweepProgress,
        warmups: Any,
        known: pa.Table,
        signals: list[int],
    ) -> None:
        self.store, self.progress, self.warmups, self.known = store, progress, warmups, known
        self.signals, self.ending = signals, False
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.trials = {trial.trial_id: trial for trial in trials}
        self.error: StorageError | None = None
        self.metadata = provenance()
        self.front_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, for a restore that never comes

    def _of(self, trial: Any) -> Trial:
        return self.trials[trial.config["trial_id"]]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if (self.signals or self.error) and not self.ending:
            self.ending = True
            os.kill(os.getpid(), signal.SIGUSR1)  # how Tune, which handles it by now, is asked to end in order

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.curves[self._of(trial).trial_id] = []

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # At once, not when it starts again: all places may be taken by others that wait for its warm-up.
        ours = self._of(trial)
        self.warmups.release.remote(ours.trial_id)
        self.progress.forget(ours.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ours = self._of(trial)
        if "error" in result and "state" in result:
            self._end_early(ours, trial, result["state"], result["error"])
        elif "rows" in result:
            self._finish(ours, trial, result["rows"], result["history"])
        else:
            self.curves[ours.trial_id] += entries(ours, result)
            self.progress.update(ours.trial_id, ours.label, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._of(trial)
        self._end_early(ours, trial, "failed", f"worker lost {trial.num_failures} times: {_reason(trial)}")

    def _end_early(self, ours: Trial, trial: Any, state: str, error: str) -> None:
        self._finish(ours, trial, unfinished_rows(ours, state, error), self.curves.get(ours.trial_id, []))

    def _finish(self, ours: Trial, trial: Any, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        self.warmups.release.remote(ours.trial_id)  # where it ended while it trained one
        rows = [row | {"attempt": trial.num_failures + 1} for row in rows]
        history = [entry | {"trial_id": ours.trial_id} for entry in history]
        try:
            self.store.write(ours.trial_id, rows, history, self.metadata)
        except StorageError as error:
            self.error = self.error or error
            return
        except ValueError as error:  # rows of another version of qdtune, say: no trial may end the sweep unasked
            self.error = self.error or StorageError(str(error))
            return
        self.known = pa.concat_tables([self.known, pa.Table.from_pylist(rows, schema=self.known.schema)])
        front = self.progress.front
        last = self.progress.finished + 1 == len(self.trials)
        if last or front is None or time.monotonic() - self.front_at >= FRONT_EVERY_S:
            self.front_at = time.monotonic()
            front = table_front(aggregate(self.known))
        worst = next((row["state"] for row in rows if row["state"] != "ok"), "ok")
        self.progress.finish(ours.trial_id, worst, front)


def entries(trial: Trial, report: dict[str, Any]) -> list[dict[str, Any]]:
    """A report as rows of the history, one per seed."""
    shared = {"phase": report["phase"], "epoch": report["epoch"], "seconds": report["seconds"] / len(trial.seeds)}
    points = zip(trial.seeds, report["train_loss"], report["val_accuracy"], strict=True)
    return [shared | {"seed": seed, "train_loss": loss, "val_accuracy": acc} for seed, loss, acc in points]


def unfinished_rows(trial: Trial, state: str, error: str) -> list[dict[str, Any]]:
    """One row per seed for a trial that ended without any: what is known before training, and why it ended."""
    now = datetime.now(timezone.utc)
    return [
        trial.columns | {"seed": seed, "state": state, "error": error, "finished_at": now} for seed in trial.seeds
    ]


def provenance() -> dict[str, str]:
    """Versions and, in a git checkout, the commit: what a row's file says of the program that made it."""
    found = {"qdtune": __version__} | {name: version(name) for name in ("torch", "ray", "pyarrow")}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {f"qdtune.version.{name}": v for name, v in found.items()} | {"qdtune.git_commit": commit}


def _reason(trial: Any) -> str:
    """Ray's own account of a lost worker, in one line."""
    text = trial.get_error() if trial.pickled_error_file else "no reason given"
    return " ".join(str(text).split())[:300]
