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

from qdtune.progress import SweepProgress
from qdtune.spec import Trial
from qdtune.store import StorageError, Store
from qdtune.tables import aggregate, table_front

FRONT_EVERY_S = 2.0  # between two looks at the front while trials finish


class Recorder(tune.Callback):
    """Writes every finished trial into the store and tells the progress display.

    Nothing it does may raise into Tune, which would abort the sweep: a storage error is kept in `error` and ends
    the sweep in order.
    """

    def __init__(
        self, store: Store, trials: list[Trial], progress: SweepProgress, warmups: Any, known: pa.Table
    ) -> None:
        self.store, self.progress, self.warmups, self.known = store, progress, warmups, known
        self.trials = {trial.trial_id: trial for trial in trials}
        self.error: StorageError | None = None
        self.metadata = provenance()
        self.front_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, for a restore that never comes

    def _of(self, trial: Any) -> Trial:
        return self.trials[trial.config["trial_id"]]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._of(trial)
        self.warmups.release.remote(ours.trial_id)  # of an earlier attempt, whose worker was lost
        self.progress.forget(ours.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ours = self._of(trial)
        if "error" in result and "state" in result:
            self._finish(ours, trial, unfinished_rows(ours, result["state"], result["error"]), [])
        elif "rows" in result:
            self._finish(ours, trial, result["rows"], result["history"])
        else:
            self.progress.update(ours.trial_id, ours.label, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._of(trial)
        told = f"worker lost {trial.num_failures} times: {_last_line(trial)}"
        self._finish(ours, trial, unfinished_rows(ours, "failed", told), [])

    def _finish(self, ours: Trial, trial: Any, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        self.warmups.release.remote(ours.trial_id)  # where it ended while it trained one
        rows = [row | {"attempt": trial.num_failures + 1} for row in rows]
        history = [entry | {"trial_id": ours.trial_id} for entry in history]
        try:
            self.store.write(ours.trial_id, rows, history, self.metadata)
        except StorageError as error:
            if self.error is None:
                self.error = error
                os.kill(os.getpid(), signal.SIGUSR1)  # how Tune is asked to end in order
            return
        self.known = pa.concat_tables([self.known, pa.Table.from_pylist(rows, schema=self.known.schema)])
        front = self.progress.front
        if time.monotonic() - self.front_at >= FRONT_EVERY_S or front is None:
            self.front_at = time.monotonic()
            front = table_front(aggregate(self.known))
        worst = next((row["state"] for row in rows if row["state"] != "ok"), "ok")
        self.progress.finish(ours.trial_id, worst, front)


def unfinished_rows(trial: Trial, state: str, error: str) -> list[dict[str, Any]]:
    """One row per seed for a trial that ended without any: what is known before training, and why it ended."""
    now = datetime.now(timezone.utc)
    return [
        trial.columns | {"seed": seed, "state": state, "error": error, "finished_at": now} for seed in trial.seeds
    ]


def provenance() -> dict[str, str]:
    """Versions and, in a git checkout, the commit: what a row's file says of the program that made it."""
    found = {name: version(name) for name in ("qdtune", "torch", "ray", "optuna", "pyarrow")}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {f"qdtune.version.{name}": v for name, v in found.items()} | {"qdtune.git_commit": commit}


def _last_line(trial: Any) -> str:
    """Ray's own account of a lost worker, in one line."""
    text = trial.get_error() if trial.pickled_error_file else "no reason given"
    return " ".join(str(text).split())[:300]
