"""What happens in Ray Tune, as it reaches the store and the progress display."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from qdtune import __version__, plugins
from qdtune.configuration import Trial
from qdtune.feed import Feed
from qdtune.progress import SweepProgress
from qdtune.results import Result, Rows, result_of
from qdtune.store import StorageError, Store
from qdtune.tables import TRIALS, aggregate, table_front

FRONT_EVERY_S = 2.0  # between two looks at the front while trials finish


class Recorder(tune.Callback):
    """The driver's side of a sweep: feeds Ray Tune with trials, judges and stores what comes back, tells the display.

    Nothing it does may raise into Tune, which would abort the sweep: a storage error is kept in `error` and ends
    the sweep in order, as a signal does.

    Args:
        feed: what is to be trained.
        store: where results go.
        progress: the display.
        warmups: the actor that holds the warm-ups.
        known: rows that were there before, to which its own are added.
        signals: received so far; the first one ends the sweep.
    """

    def __init__(
        self,
        feed: Feed,
        store: Store,
        progress: SweepProgress,
        warmups: Any,
        known: Rows,
        signals: list[int],
    ) -> None:
        self.feed, self.store, self.progress, self.warmups, self.known = feed, store, progress, warmups, known
        self.signals, self.ending = signals, False
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.error: StorageError | None = None
        self.metadata = provenance()
        self.front_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, for a restore that never comes

    def next(self) -> Trial | None:
        """The trial to start now; None if there is none now, or no longer any (see `over`)."""
        with self._kept():
            return self.feed.next()
        return None

    @property
    def over(self) -> bool:
        """Whether no trial will come any more."""
        return self.feed.over or self.error is not None

    def stops(self, trial_id: str, report: dict[str, Any]) -> bool:
        """Whether a running trial is to end with this report, because it has been beaten."""
        with self._kept():
            return self.feed.study.report(trial_id, report["epoch"], report["val_accuracy"]) is not None
        return False

    @contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except StorageError as error:
            self.error = self.error or error

    def _of(self, trial: Any) -> Trial:
        return self.feed.running[trial.config["trial_id"]]

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
        by = self.feed.study.pruned_by(ours.trial_id)
        if "error" in result and "state" in result:
            self._end_early(ours, result["state"], result["error"], trial.num_failures + 1)
        elif by is not None:  # before `done`, which Tune sets on what the scheduler stops, too
            stopped = [row | ({"state": "pruned"} if row["state"] == "ok" else {}) for row in result["rows"]]
            stopped = [row | {"pruned_by": by} for row in stopped]
            self._finish(ours, stopped, result["history"], trial.num_failures + 1)
        elif result["done"]:
            self._finish(ours, result["rows"], result["history"], trial.num_failures + 1)
        else:
            self.curves[ours.trial_id] = result["history"]
            self.progress.update(ours.trial_id, ours.label, result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._of(trial)
        lost = trial.num_failures  # the last one included
        self._end_early(ours, "failed", f"worker lost {lost} times: {_reason(trial)}", lost)

    def _end_early(self, ours: Trial, state: str, error: str, attempts: int) -> None:
        self._finish(ours, unfinished_rows(ours, state, error), self.curves.get(ours.trial_id, []), attempts)

    def _finish(self, ours: Trial, rows: list[dict[str, Any]], history: list[dict[str, Any]], attempts: int) -> None:
        self.warmups.release.remote(ours.trial_id)  # where it ended while it trained one
        before = max((row["attempt"] or 0 for row in self.known.get(ours.trial_id, ())), default=0)
        rows = [row | {"attempt": before + attempts} for row in rows]
        history = [entry | {"trial_id": ours.trial_id} for entry in history]
        self.curves.pop(ours.trial_id, None)
        with self._kept():  # first, for the journal of the study is made anew from what is stored
            try:
                self.store.write(ours.trial_id, rows, history, self.metadata)
            except ValueError as error:  # rows of another version of qdtune, say: no trial may end the sweep unasked
                raise StorageError(str(error)) from error
        ended = result_of(ours, rows, history)
        self.known[ours.trial_id] = rows
        with self._kept():
            self.feed.ended(ended)
        self._show(ended)

    def _show(self, ended: Result) -> None:
        front, total, left = self.progress.front, self.feed.total, self.feed.left
        if not left or front is None or time.monotonic() - self.front_at >= FRONT_EVERY_S:
            self.front_at = time.monotonic()
            rows = [row for rows in self.known.values() for row in rows]
            front = table_front(aggregate(pa.Table.from_pylist(rows, schema=TRIALS)))
        self.progress.finish(ended.trial.trial_id, ended.state, front, total - left, total)


class FeedSearcher(Searcher):
    """Hands the trials of a sweep to Ray Tune, one whenever there is room for it."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True  # what may be chosen is known to the feed

    def suggest(self, trial_id: str) -> Any:
        trial = self.recorder.next()
        if trial is None:
            return Searcher.FINISHED if self.recorder.over else None
        return trial.config | {
            "trial_id": trial.trial_id,
            "seeds": list(trial.seeds),
            "alone": self.recorder.feed.alone,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass  # a resume is planned from the store

    def restore(self, checkpoint_path: str) -> None:
        raise RuntimeError("a sweep is resumed by launching it again")


class PruningScheduler(FIFOScheduler):
    """Stops a trial in QAT, where the sweep's pruner says so; the recorder, which comes next, finds out by whom."""

    _supports_buffered_results = False

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "rows" in result and self.recorder.stops(trial.config["trial_id"], result):
            return FIFOScheduler.STOP
        return FIFOScheduler.CONTINUE


def unfinished_rows(trial: Trial, state: str, error: str) -> list[dict[str, Any]]:
    """One row per seed for a trial that ended without any: what is known before training, and why it ended."""
    now = datetime.now(timezone.utc)
    return [
        trial.columns | {"seed": seed, "state": state, "error": error, "finished_at": now} for seed in trial.seeds
    ]


def provenance() -> dict[str, str]:
    """Versions, the user's own code and, in a git checkout, the commit: what a row's file says of how it was made."""
    found = {"qdtune": __version__} | {name: version(name) for name in ("torch", "ray", "pyarrow")}
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    own = {f"qdtune.plugin.{s.module}": f"{s.path} sha256:{s.sha256}" for s in plugins.sources()}
    return {f"qdtune.version.{name}": v for name, v in found.items()} | {"qdtune.git_commit": commit} | own


def _reason(trial: Any) -> str:
    """Ray's own account of a lost worker, in one line."""
    text = trial.get_error() if trial.pickled_error_file else "no reason given"
    return " ".join(str(text).split())[:300]
