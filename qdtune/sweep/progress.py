"""The progress of a running sweep: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from types import TracebackType
from typing import Any

from qdtune.spec.metric_text import format_briefly, format_metric, named
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.front import front_table
from qdtune.store.tables import Table
from qdtune.terminal import Screen

# The time between two plain lines: after a trial has begun or ended, and if nothing has changed.
CHANGED_LINE_S, QUIET_LINE_S = 5.0, 60.0
LINE_TRIALS, LIVE_TRIALS = 4, 8  # how many running trials a line names, and the live display
LIVE_FRONT_ROWS = 8
RECENT_TRIALS = 12  # the time left is estimated from the pace of the latest trials


class SweepProgress:
    """A bar with the trials done, running, pruned and failed, the epochs, the time left, and the front so far.

    Args:
        out: the console.
        total: the number of trials.
        done: how many of them ended in earlier launches.
        varying: the axes to show.
        epochs: of a trial, by phase, in the order of the phases. A trial that ends early counts with all epochs.
        metric: that judges.
    """

    def __init__(
        self,
        out: Any,
        total: int,
        done: int,
        varying: set[str],
        epochs: dict[str, int],
        metric: Metric = ACCURACY,
    ) -> None:
        self.out, self.total, self.done, self.varying, self.epochs = out, total, done, varying, epochs
        self.metric = metric
        self.states: Counter[str] = Counter()
        self.running: dict[str, str] = {}  # the text of each running trial
        self.trained: Counter[str] = Counter()  # epochs of each running trial
        self.marks: deque[tuple[float, int]] = deque(maxlen=RECENT_TRIALS)  # latest ends, and epochs by then
        self.first: dict[str, tuple[str, float, int]] = {}  # of each: its phase, when that began, epochs by then
        self.end = 0.0  # the estimated end, 0 if unknown
        self.line_at, self.changed = time.monotonic(), False
        self.front: Table | None = None
        self.decisions = ""  # how the comparisons stand that get more seeds
        self.screen = Screen(out, "trials", total, done, self._below)

    def __enter__(self) -> SweepProgress:
        self.screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.screen.is_live:
            self.front = None  # the final table follows, so the display shows no front
        self.screen.stop()

    def start(self, trial_id: str, name: str) -> None:
        """Notes that a trial begins; it may have to compile before it reports its first epoch."""
        self.running[trial_id] = f"{name} starting"
        if self.done + len(self.running) > self.total:  # more seeds, which were not foreseen
            self.total = self.done + len(self.running)
            self.screen.update(self.done, self.total)
        self.changed = True

    def update(self, trial_id: str, name: str, report: dict[str, Any]) -> None:
        """Notes a report of a running trial."""
        known = [value for value in report[self.metric.val] if value is not None]
        mean = f" {format_briefly(self.metric, sum(known) / len(known))}" if known else ""
        phase, epoch = report["phase"], report["epoch"]
        self.running[trial_id] = f"{name} {phase} {epoch}/{self.epochs[phase]}{mean}"
        phases = list(self.epochs)
        self.trained[trial_id] = sum(self.epochs[before] for before in phases[: phases.index(phase)]) + epoch
        if trial_id not in self.first or self.first[trial_id][0] != phase:
            self.first[trial_id] = phase, time.monotonic(), self.trained[trial_id]
        self._guess()
        self.tick()

    def finish(self, trial_id: str, state: str, front: Table, done: int, total: int) -> None:
        """Notes the end of a trial, the front that includes it, and the trials done and in total."""
        self.done, self.total = done, total
        self.forget(trial_id)
        self._guess()
        self.marks.append((time.monotonic(), self._trained()[0]))
        self.states[state] += 1
        self.front = front
        self.screen.update(self.done, total)
        self.tick(last=self.done == self.total)

    def forget(self, trial_id: str) -> None:
        """Notes that a trial no longer runs."""
        self.running.pop(trial_id, None)
        self.trained.pop(trial_id, None)
        self.first.pop(trial_id, None)
        self.changed = True

    def _trained(self) -> tuple[int, int]:
        """The epochs trained, including those of running trials, and all epochs."""
        each = sum(self.epochs.values())
        return each * self.done + self.trained.total(), each * self.total

    def _guess(self) -> None:
        """Estimates the end from the latest trials, because the first ones also train the warm-ups.

        The end is not before a running trial ends at its own pace: a large trial may run after the others have ended.
        """
        now, (trained, total) = time.monotonic(), self._trained()
        each = sum(self.epochs.values())
        self.marks = self.marks or deque([(now, trained)], maxlen=RECENT_TRIALS)
        since, before = self.marks[0]
        if trained - before >= each:  # at least one trial's worth
            self.end = now + (total - trained) * (now - since) / (trained - before)
        for trial_id, (_, since, before) in self.first.items():
            if self.end and (done := self.trained[trial_id]) > before:
                self.end = max(self.end, now + (each - done) * (now - since) / (done - before))

    def summary(self) -> str:
        """One line: `12/35 done, 2 running, 1 diverged, 197/525 epochs, about 3 min left`."""
        parts = [f"{self.done}/{self.total} done", f"{len(self.running)} running"]
        parts += [f"{n} {state}" for state, n in sorted(self.states.items()) if state != "ok"]
        parts.append("{:,}/{:,} epochs".format(*self._trained()))
        parts += [self.decisions] if self.decisions else []
        left = self.end - time.monotonic()
        if left > 0 and self.done < self.total:
            parts.append(f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left")
        return ", ".join(parts)

    def tick(self, last: bool = False) -> None:
        """Prints a plain line if one is due and there is no live display; the recorder calls it often."""
        silent = time.monotonic() - self.line_at
        if not self.screen.is_live and (last or silent >= (CHANGED_LINE_S if self.changed else QUIET_LINE_S)):
            self.line_at, self.changed = time.monotonic(), False
            parts = [self.summary()]
            if self.front is not None and self.front.num_rows:
                row = self.front.to_pylist()[-1]
                value = format_metric(self.metric, row[self.metric.val])
                best = f"best {named(self.metric, value)} at {row['size_bytes']:,} bytes"
                parts.append(f"front of {self.front.num_rows}, {best}")
            more = len(self.running) - LINE_TRIALS
            doing = [*list(self.running.values())[:LINE_TRIALS], *([f"{more} more"] if more > 0 else [])]
            self.out.print("; ".join([*parts, ", ".join(doing)] if doing else parts))

    def _below(self) -> list[Any]:
        """The lines below the bar."""
        running = [f"  {text}" for text in list(self.running.values())[:LIVE_TRIALS]]
        if self.front is None or not self.front.num_rows:
            return [self.summary(), *running]
        rows = self.front.slice(max(0, self.front.num_rows - LIVE_FRONT_ROWS))
        return [self.summary(), *running, front_table(rows, self.varying, "front so far", room=self.out.width)]
