"""The recorder takes each event of Ray Tune to the store, the queue and the progress display."""

from __future__ import annotations

import math
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from qdtune.messages import one_line
from qdtune.search.queue import Queue
from qdtune.spec.configuration import Configuration
from qdtune.store.folder import StorageError
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.provenance import make_provenance
from qdtune.store.results import Epochs, Result, Rows, read_curve, result_of
from qdtune.store.store import Store
from qdtune.store.tables import table_of
from qdtune.sweep.loggers import SweepLoggers
from qdtune.sweep.lost_trial import locate_stack, read_reason, unfinished_rows
from qdtune.sweep.metrics import SweepMetrics
from qdtune.sweep.progress import SweepProgress
from qdtune.sweep.result_writer import ResultWriter
from qdtune.sweep.trainable import describe_timeout
from qdtune.sweep.watches import PreparingWatch

FRONT_EVERY_S = 2.0  # between two computations of the front
HOPELESS = 5  # if the first so many trials fail alike, the fault is in the sweep, so it stops
OUT_OF_MEMORY = ("OutOfMemory", "low on memory")  # in Ray's reason for a worker that it killed


class Recorder(tune.Callback):
    """The driver's side of a sweep: it gives trials to Ray Tune, prunes and stores them, and updates the display.

    It must not raise into Tune, which would abort the sweep. A storage error that lasts is kept in `error` and ends
    the sweep in order, as a signal does.

    Args:
        queue: the trials.
        store: where results go.
        progress: the display.
        warmups: the actor that holds the warm-ups.
        known: the rows of earlier results; it adds its own.
        signals: received so far; the first one ends the sweep.
        stacks: a folder in which trials that hang leave their stack.
        loggers: the trackers that are told, too.
        paused: the actor that holds the checkpoints; None if there are none.
    """

    def __init__(
        self,
        queue: Queue,
        store: Store,
        progress: SweepProgress,
        warmups: Any,
        known: Rows,
        signals: list[int],
        stacks: Path | None = None,
        loggers: SweepLoggers | None = None,
        paused: Any = None,
    ) -> None:
        self.queue, self.store, self.progress, self.warmups, self.known = queue, store, progress, warmups, known
        self.signals, self.ending, self.stacks, self.loggers = signals, False, stacks, loggers or SweepLoggers()
        self.paused = paused
        self.writer = ResultWriter(store, make_provenance(), lambda line: progress.out.print(line, style="yellow"))
        self.alike: list[str] | None = []  # errors of the first trials; None once a trial has not failed
        self.heard: dict[str, float] = {}  # when each running trial last reported
        self.recovering: set[str] = set()  # lost, and not started again yet
        self.lost: Counter[str] = Counter()  # losses of trials that Ray Tune has given up too early
        self.returned: deque[Configuration] = deque()  # these trials, to start again
        self.nodes: dict[str, str] = {}  # the node that each running trial last reported from
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.resumed: dict[str, int] = {}  # the QAT epochs that this launch need not train, of trials that reported
        self.front_at, self.is_noted = 0.0, False
        self.noting: Any = signal.getsignal(signal.SIGUSR1)  # notes the signals of the user
        self.ending_tune: Callable[[int, Any], Any] = lambda number, frame: None  # see `setup`
        self.preparing = PreparingWatch(paused)
        self.metrics = SweepMetrics(queue.spec, queue.planned)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that never comes

    def next(self) -> Configuration | None:
        """The trial to start now; None if there is none now, or none any more (see `over`)."""
        self._note_written()  # after the last running trial Tune only calls this method and begins no step
        if self.writer.is_behind or self.signals:
            return None
        return self.returned.popleft() if self.returned else self.queue.next()

    @property
    def error(self) -> StorageError | None:
        """Why the storage is given up, None if it is not."""
        return self.writer.error

    @property
    def over(self) -> bool:
        """Whether no further trial will come."""
        return self.queue.over or self.error is not None or bool(self.signals)

    def stops(self, trial_id: str, report: dict[str, Any]) -> bool:
        """Whether a running trial ends with this report because the pruner stops it."""
        earlier: Epochs = {}
        if report["epoch"] == report.get("resumed_at", 0) + 1 > 1:  # the study may not know the epochs before
            curve, _ = read_curve(self.queue.running[trial_id], report["history"])
            earlier = {epoch: values for epoch, values in curve.items() if epoch < report["epoch"]}
        values = report[self.queue.spec.metric.val]
        return self.queue.study.report(trial_id, report["epoch"], values, earlier) is not None

    def _of(self, trial: Any) -> Configuration:
        return self.queue.running[trial.config["trial_id"]]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.metrics.again()
        if (texts := self.preparing.poll()) is not None:
            self.progress.set_preparing(texts)
        self.progress.tick()
        self._note_written()
        if (self.signals or self.error) and not self.ending:
            self._end()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._of(trial)
        self.curves[ours.trial_id] = []
        self.heard[ours.trial_id] = time.monotonic()
        self.recovering.discard(ours.trial_id)
        if not self.progress.decisions:
            self._show_decisions()
        self.progress.start(ours.trial_id, self.progress.name(ours, self.queue.spec.seeds))
        self.loggers.start(ours)
        self._moved()

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Release its warm-up at once: trials that wait for it may hold all places, so that it could not start again.
        ours = self._of(trial)
        self.warmups.release.remote(ours.trial_id)
        self.progress.forget(ours.trial_id)
        self._moved()
        self.recovering.add(ours.trial_id)
        if self._silence(ours):
            trial.max_failures = trial.num_failures  # a trial that hangs is retried only once

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        ours = self._of(trial)
        self.metrics.trained(result)
        resumed_at = result.get("resumed_at", 0)
        self.resumed[ours.trial_id] = min(resumed_at, self.resumed.get(ours.trial_id, resumed_at))
        self._see_move(ours, result, trial.num_failures)
        self._tell_note(result)
        by = self.queue.study.pruned_by(ours.trial_id)
        weights = result.pop("weights", None)  # Tune keeps every result until the sweep ends
        if "error" in result and "state" in result:
            self._end_early(ours, result["state"], result["error"], trial.num_failures + 1)
        elif by is not None:  # checked before `done`, because Tune also sets `done` if the scheduler stops a trial
            stopped = [row | ({"state": "pruned"} if row["state"] == "ok" else {}) for row in result["rows"]]
            stopped = [row | {"pruned_by": by} for row in stopped]
            self._finish(ours, stopped, result["history"], trial.num_failures + 1)
        elif result["done"]:
            self._finish(ours, result["rows"], result["history"], trial.num_failures + 1, weights)
        else:
            self.heard[ours.trial_id] = time.monotonic()
            self.curves[ours.trial_id] = result["history"]
            self.progress.update(ours.trial_id, result)
            self.loggers.update(ours.trial_id, result["history"])

    def _see_move(self, ours: Configuration, result: dict[str, Any], losses: int) -> None:
        """Prints a line if a trial that started again runs on another node, or had not reported before."""
        if "node" not in result:
            return
        node = f"{result.get('node_ip')} ({result['node'][:6]})"  # one machine may have several nodes
        before, self.nodes[ours.trial_id] = self.nodes.get(ours.trial_id), node
        if before is None and (losses or self.lost[ours.trial_id]):
            self.progress.out.print(f"{ours.label} ({ours.trial_id}) starts again on node {node}")
        elif before not in (None, node):
            self.progress.out.print(f"{ours.label} ({ours.trial_id}) moved from node {before} to node {node}")

    def _tell_note(self, result: dict[str, Any]) -> None:
        """Prints the first note of a trial: all trials of a sweep have the same reason to run uncompiled."""
        note = result.pop("note", None)
        if note and not self.is_noted:
            self.is_noted = True
            what = "training runs uncompiled, slowly (run.compile: never does so without this line)"
            self.progress.out.print(f"{one_line(note)}: {what}", style="yellow")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        ours = self._of(trial)
        # A worker may be lost while it takes over its next trial. Tune (2.60) then gives that trial up although it
        # has attempts left, because it has not started yet; sometimes only after a call of `on_trial_recover`.
        told_twice = ours.trial_id in self.recovering
        losses = trial.num_failures - told_twice  # the last one included
        lost = self.lost[ours.trial_id] + losses
        reason = read_reason(trial)
        if silence := self._silence(ours):
            self._end_early(ours, "timeout", silence, losses)
        elif (told_twice or losses <= trial.max_failures) and lost <= self.queue.spec.run.max_failures:
            self.lost[ours.trial_id] = lost
            self.returned.append(ours)
            self.warmups.release.remote(ours.trial_id)
            self.progress.forget(ours.trial_id)
            self._moved()
        else:
            state = "oom" if any(words in reason for words in OUT_OF_MEMORY) else "failed"
            self._end_early(ours, state, f"worker lost {lost} times: {reason}", losses)

    def _silence(self, ours: Configuration) -> str | None:
        """Why a lost worker killed itself, None if it did not."""
        limit, whole = self.queue.spec.run.stall_timeout_s, self.queue.spec.run.trial_timeout_s
        silent = time.monotonic() - self.heard.get(ours.trial_id, math.inf)
        place = locate_stack(self.stacks / ours.trial_id) if self.stacks else ""
        if limit is not None and silent >= limit:
            return f"no report for {limit:g} s (run.stall_timeout_s){place}"
        return f"{describe_timeout(whole)}{place}" if whole is not None and place else None

    def _end_early(self, ours: Configuration, state: str, error: str, attempts: int) -> None:
        self._finish(ours, unfinished_rows(ours, state, error), self.curves.get(ours.trial_id, []), attempts)

    def _finish(
        self,
        ours: Configuration,
        rows: list[dict[str, Any]],
        history: list[dict[str, Any]],
        attempts: int,
        weights: bytes | None = None,
    ) -> None:
        self.warmups.release.remote(ours.trial_id)  # it may have ended while it trained one
        before = max((row["attempt"] or 0 for row in self.known.get(ours.trial_id, ())), default=0)
        attempts += self.lost.pop(ours.trial_id, 0)
        self.recovering.discard(ours.trial_id)
        released = ours.trial_id in self.queue.released
        own = {"attempt": before + attempts, "released": released, "p_reach": self.queue.released.get(ours.trial_id)}
        rows = [row | own for row in rows]
        history = [entry | {"trial_id": ours.trial_id} for entry in history]
        self.curves.pop(ours.trial_id, None)
        self.nodes.pop(ours.trial_id, None)
        self.writer.add((ours, rows, history, weights))
        self._note_written()

    def close(self) -> None:
        """Writes the results that are not written yet, or sets `error`."""
        self.writer.close()
        self._note_written()

    def _note_written(self) -> None:
        """Notes the trials that were stored since the last call."""
        for ours, rows, history, _ in self.writer.take_written():
            self._note(ours, rows, history)

    def _note(self, ours: Configuration, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
        ended = result_of(ours, rows, history)
        self.known[ours.trial_id] = rows
        self.queue.ended(ended, self.resumed.pop(ours.trial_id, 0))
        # A stopped trial may be released, also by a later launch.
        if self.paused is not None and not (ended.state == "pruned" and self.queue.spec.early_terminate.risk):
            self.paused.forget_paused.remote([ours.trial_id])
        self._show(ended)
        self.loggers.finish(ours, rows, history, ended.state)
        if self.alike is not None:
            self.alike = [*self.alike, rows[0]["error"]] if ended.state == "failed" else None
        if self.alike and len(self.alike) == HOPELESS and len(set(self.alike)) == 1 and not self.ending:
            what = f"the first {HOPELESS} trials failed alike, so the sweep ends: {self.alike[0]}"
            self.progress.out.print(one_line(what), style="yellow")
            self._end()

    def setup(self, *unused: Any, **info: Any) -> None:
        # Tune has set its own handler of SIGUSR1, which ends it in order. For users the signal means what it meant.
        if callable(handler := signal.getsignal(signal.SIGUSR1)) and handler is not self.noting:
            self.ending_tune = handler
            signal.signal(signal.SIGUSR1, self.noting)

    def _end(self) -> None:
        self.ending = True
        self.ending_tune(signal.SIGUSR1, None)

    def _show(self, ended: Result) -> None:
        front, total, left = self.progress.front, self.queue.total, self.queue.left
        if not left or front is None or time.monotonic() - self.front_at >= FRONT_EVERY_S:
            self.front_at = time.monotonic()
            rows = [row for rows in self.known.values() for row in rows]
            table = aggregate(table_of(rows, self.store.trials_schema), costs=self.queue.spec.costs)
            front = table_front(table)
            self.metrics.stand((result.state for result in self.queue.results.values()), table)
            self._show_decisions()
        self.progress.finish(ended.trial.trial_id, ended.state, front, total, len(ended.curve))
        self._moved()

    def _show_decisions(self) -> None:
        """Shows how comparisons stand, once the plan is through and they get more seeds until they are decided."""
        tally = self.queue.count_decisions() if self.queue.is_replicating else None
        self.progress.decisions = tally.progress if tally else ""

    def _moved(self) -> None:
        """Updates the metrics with the trials that have begun; those of the queue may still wait for a place."""
        self.metrics.moved(len(self.progress.running), self.queue.left)
