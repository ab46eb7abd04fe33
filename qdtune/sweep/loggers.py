"""Tells trackers (MLflow, W&B, TensorBoard) what a sweep learns, while it runs.

Every tracker has a queue and a thread of its own, so that a slow one or a broken one holds up neither the sweep nor
another tracker. The first mistake of a tracker costs one line and ends its part; its library has retried before that.
"""

from __future__ import annotations

import itertools
import queue
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from qdtune.messages import one_line
from qdtune.spec.configuration import Configuration
from qdtune.spec.loggers import find_loggers
from qdtune.spec.objectives import KNOWN_BEFORE
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.columns import FINAL
from qdtune.store.folder import StorageError
from qdtune.store.store import Store
from qdtune.sweep.logger_callbacks import CALLBACKS, STEP, LoggedSweep, LoggedTrial, events_folder

KEY_FILE = "logged_as.txt"  # of the run folder
MAX_QUEUED = 100_000  # entries; a tracker that is further behind is given up
CLOSE_S, STOP_S = 60.0, 5.0  # how long the end of a sweep, and of one that was stopped, waits for trackers


class LoggerThread(threading.Thread):
    """Hands entries to one tracker, in order, until it fails or is told to end.

    Args:
        kind: the callback of the tracker; it is made in the thread, because its library may take seconds to import.
        sweep: for the callback.
        out: where to say what went wrong.
    """

    def __init__(self, kind: Any, sweep: LoggedSweep, out: Any) -> None:
        super().__init__(
            name=f"logger {kind.logger.name}", daemon=True
        )  # a tracker that hangs keeps no process alive
        self.kind, self.sweep, self.out = kind, sweep, out
        self.entries: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(MAX_QUEUED)
        self.has_ended = False
        self.start()

    def send(self, method: str, *arguments: Any) -> None:
        """Leaves an entry for the tracker; returns at once."""
        if not self.has_ended:
            try:
                self.entries.put_nowait((method, arguments))
            except queue.Full:
                self._fail(f"is {MAX_QUEUED:,} entries behind")

    def run(self) -> None:
        """Hands over entry after entry."""
        try:
            callback = self.kind(self.sweep)
            callback.setup()
            while (entry := self.entries.get()) is not None and not self.has_ended:
                method, arguments = entry
                getattr(callback, method)(*arguments)
            self.has_ended = True
        except Exception as error:  # whatever a library raises: the sweep goes on
            self._fail(f"failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Lets the thread end when it has handed over what is there."""
        with suppress(queue.Full):  # then `wait_until` gives it up
            self.entries.put_nowait(None)

    def wait_until(self, deadline: float) -> None:
        """Waits for the end of a thread that was closed, or gives it up when the time has come.

        Args:
            deadline: as `time.monotonic` counts.
        """
        self.join(max(0.0, deadline - time.monotonic()))
        if self.is_alive() and not self.has_ended:
            self._fail(f"is too slow: {self.entries.qsize():,} entries are left")

    def _fail(self, what: str) -> None:
        if not self.has_ended:
            self.has_ended = True
            line = one_line(f"{self.kind.logger.name} {what}")[:300]
            self.out.print(f"{line} (the sweep goes on without it)", style="yellow")


class SweepLoggers:
    """What the recorder tells about trials, for all trackers of a sweep; each call returns at once.

    Args:
        threads: one per tracker.
        sweep: the sweep.
        warmup_epochs: how many epochs come before the first one of QAT.
        metric: that judges.
        also: that are measured on the test set only.
    """

    def __init__(
        self,
        threads: Sequence[LoggerThread] = (),
        sweep: LoggedSweep = LoggedSweep("", "", ""),  # noqa: B008 - frozen
        warmup_epochs: int = 0,
        metric: Metric = ACCURACY,
        also: Sequence[Metric] = (),
    ) -> None:
        self.threads, self.sweep, self.warmup_epochs = threads, sweep, warmup_epochs
        self.metric, self.also = metric, also
        self.running: dict[str, LoggedTrial] = {}
        self.steps: dict[str, int] = {}  # the last one that each running trial has logged

    def start(self, trial: Configuration) -> None:
        """Notes that a trial begins; one that was lost and begins again goes on with its run."""
        if not self.threads or trial.trial_id in self.running:
            return
        folder = events_folder(self.sweep, trial.label, trial.trial_id)
        logged = LoggedTrial(trial.trial_id, trial.label, config_of(trial), folder)
        self.running[trial.trial_id], self.steps[trial.trial_id] = logged, 0
        self._send("log_trial_start", logged)

    def update(self, trial_id: str, history: Iterable[Mapping[str, Any]]) -> None:
        """Logs the epochs of a running trial that are new, those of a warm-up that it shares included."""
        if not self.threads:
            return
        for step, numbers in epoch_means(history, self.metric, self.warmup_epochs, self.steps[trial_id]):
            self.steps[trial_id] = step
            self._send("log_trial_result", step, self.running[trial_id], {STEP: step, **numbers})

    def finish(
        self,
        trial: Configuration,
        rows: Sequence[Mapping[str, Any]],
        history: Iterable[Mapping[str, Any]],
        state: str,
    ) -> None:
        """Logs the last epochs of a trial and its final numbers, and ends its run.

        Args:
            trial: the configuration.
            rows: one per seed, as the store keeps them.
            history: all of its epochs.
            state: how it ended.
        """
        if not self.threads:
            return
        self.start(trial)  # a trial may fail before it starts
        self.update(trial.trial_id, history)
        logged = replace(self.running.pop(trial.trial_id), state=state)
        step = self.steps.pop(trial.trial_id)
        means = {name: mean_of(row.get(name) for row in rows) for name in final_numbers(self.metric, self.also)}
        final = {name: mean for name, mean in means.items() if mean is not None}
        self._send("log_trial_result", step, logged, {STEP: step, **final})
        self._send("log_trial_end", logged, state not in FINAL)

    def close(self, patience_s: float) -> None:
        """Ends the runs of trials that were stopped, and waits for the trackers.

        Args:
            patience_s: how long, for all of them together.
        """
        for logged in self.running.values():
            self._send("log_trial_end", replace(logged, state="stopped"), True)
        deadline = time.monotonic() + patience_s
        for thread in self.threads:
            thread.close()
        for thread in self.threads:
            thread.wait_until(deadline)

    def _send(self, method: str, *arguments: Any) -> None:
        for thread in self.threads:
            thread.send(method, *arguments)


@contextmanager
def sweep_loggers(spec: Spec, store: Store, stopped: Sequence[int], out: Any) -> Iterator[SweepLoggers]:
    """The loggers of a sweep, within a `with` block, which ends when they have had their time.

    Args:
        spec: resolved.
        store: the run folder.
        stopped: the signals received so far: with one there is less time.
        out: where to say what goes wrong.
    """
    wanted = find_loggers(spec.run.loggers)
    sweep = LoggedSweep(spec.name, read_key(store) if wanted else "", store.folder.where)
    threads = [LoggerThread(kind, sweep, out) for kind in CALLBACKS if kind.logger in wanted]
    loggers = SweepLoggers(threads, sweep, spec.train.warmup.epochs, spec.metric, spec.task.also_tested(spec.metric))
    try:
        yield loggers
    finally:
        loggers.close(STOP_S if stopped else CLOSE_S)


def read_key(store: Store) -> str:
    """The key of a run folder, made when it is first asked for; a new one if the folder cannot be used now."""
    try:
        if kept := store.folder.read_file(KEY_FILE):
            return kept.decode("ascii", "replace").strip()
        key = secrets.token_hex(4)
        store.folder.write_file(KEY_FILE, f"{key}\n".encode())
    except StorageError:  # the sweep finds out by itself
        return secrets.token_hex(4)
    return key


def config_of(trial: Configuration) -> dict[str, Any]:
    """The parameters of a configuration, as trackers list them."""
    more = {"trial_id": trial.trial_id, "dataset": trial.dataset, "seeds": " ".join(map(str, trial.seeds))}
    return {name: "null" if value is None else value for name, value in trial.cells.items()} | more


def final_numbers(metric: Metric, also: Sequence[Metric] = ()) -> list[str]:
    """The columns that trackers get at the end of a trial.

    Args:
        metric: that judges.
        also: that are measured on the test set only.
    """
    return [metric.test, metric.float_val, *(one.test for one in also), *(one.name for one in KNOWN_BEFORE)]


def epoch_means(
    history: Iterable[Mapping[str, Any]], metric: Metric, warmup_epochs: int, after: int = 0
) -> Iterator[tuple[int, dict[str, float]]]:
    """Each epoch as its step, counted from 1 at the first of the warm-up, and the means over the seeds.

    Args:
        history: one entry per seed and epoch.
        metric: that judges.
        warmup_epochs: how many epochs come before the first one of QAT.
        after: the last step to leave out.
    """

    def step_of(entry: Mapping[str, Any]) -> int:
        return int(entry["epoch"]) + (warmup_epochs if entry["phase"] == "qat" else 0)

    new = sorted((entry for entry in history if step_of(entry) > after), key=step_of)
    for step, entries in itertools.groupby(new, step_of):
        group = list(entries)
        means = {name: mean_of(entry[name] for entry in group) for name in ("train_loss", metric.val)}
        yield step, {name: mean for name, mean in means.items() if mean is not None}


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
