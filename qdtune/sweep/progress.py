"""The progress of a running sweep: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any

from qdtune.spec.axes import short_label
from qdtune.spec.configuration import Configuration
from qdtune.spec.metric_text import format_briefly, format_metric, named
from qdtune.spec.objectives import say_costs
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.columns import costs_in
from qdtune.store.front import front_table
from qdtune.store.tables import Table
from qdtune.sweep.pace import Pace, Start
from qdtune.terminal import Screen

# The time between two plain lines: after a trial has begun or ended, and if nothing has changed. The first epoch of a
# launch, and its end, get one at once.
CHANGED_LINE_S, QUIET_LINE_S = 5.0, 60.0
LINE_TRIALS, LIVE_TRIALS = 4, 8  # how many running trials a line names, and the live display
LIVE_FRONT_ROWS = 8
STOPPED = "pruned"  # the state of a stopped trial, in tables


class SweepProgress:
    """A bar with the trials done, running, stopped and failed, the epochs, the time left, and the front so far.

    A stopped trial is done. If it is released, it runs once more, and stays done meanwhile.

    Args:
        out: the console.
        total: the number of trials.
        start: what the launch has found.
        varying: the axes to show.
        epochs: of a trial, by phase, in the order of the phases.
        metric: that judges.
    """

    def __init__(
        self,
        out: Any,
        total: int,
        start: Start,
        varying: Collection[str],
        epochs: dict[str, int],
        metric: Metric = ACCURACY,
    ) -> None:
        self.out, self.total, self.varying, self.epochs, self.metric = out, total, varying, epochs, metric
        self.states = dict(start.states)  # of the trials that have ended, by trial_id
        self.counts = Counter(self.states.values())
        self.released = set(start.released)
        self.running: dict[str, str] = {}  # the name of each running trial
        self.doing: dict[str, str] = {}  # what each of them does
        self.preparing: Mapping[str, str] = {}  # the same of those that do not train now, as they say themselves
        self.pace = Pace(epochs["warmup"], epochs["qat"], start)
        self.end = 0.0  # the estimated end, 0 if unknown
        self.line_at, self.changed, self.trains = time.monotonic(), False, False
        self.front: Table | None = None
        self.decisions = ""  # how the comparisons stand that get more seeds, see `further_seeds.Tally.progress`
        self.screen = Screen(out, "trials", total, self.done, self._below)

    def __enter__(self) -> SweepProgress:
        self.screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.screen.is_live:
            self.front = None  # the final table follows, so the display shows no front
        self.screen.stop()

    @property
    def done(self) -> int:
        """How many trials have ended; a stopped one that is released has, too."""
        return len(self.states)

    @property
    def _releasing(self) -> list[str]:
        return [trial_id for trial_id in self.running if trial_id in self.states]

    @property
    def _waiting(self) -> int:
        """How many trials have not begun."""
        return max(0, self.total - self.done - (len(self.running) - len(self._releasing)))

    def name(self, trial: Configuration, seeds: tuple[int, ...]) -> str:
        """A trial in a few words: the axes that vary, and its seeds if they are not those of the sweep, `seeds`."""
        more = f" seeds {trial.seeds[0]}-{trial.seeds[-1]}" if trial.seeds != seeds else ""
        return short_label(trial.cells, self.varying) + more

    def start(self, trial_id: str, name: str) -> None:
        """Notes that a trial begins."""
        if self.states.get(trial_id, STOPPED) != STOPPED:  # it failed, and is tried once more
            self._forget_state(trial_id)
        self.running[trial_id], self.doing[trial_id] = name, "starting"
        self.pace.begin(trial_id, time.monotonic())
        if self.done + len(self.running) - len(self._releasing) > self.total:  # more seeds, which were not foreseen
            self.total = self.done + len(self.running) - len(self._releasing)
            self.screen.update(self.done, self.total)
        self.changed = True

    def update(self, trial_id: str, report: dict[str, Any]) -> None:
        """Notes a report of a running trial."""
        known = [value for value in report[self.metric.val] if value is not None]
        mean = f" {format_briefly(self.metric, sum(known) / len(known))}" if known else ""
        phase, epoch = report["phase"], report["epoch"]
        self.doing[trial_id] = f"{phase} {epoch}/{self.epochs[phase]}{mean}"
        times = report.get("seconds", 0.0), report.get("preparing_s", 0.0)
        self.pace.add(trial_id, phase, epoch, report.get("resumed_at", 0), *times)
        self._guess()
        self.tick(now=not self.trains)  # the first epoch of the launch shows that all is well
        self.trains = True

    def set_preparing(self, texts: Mapping[str, str]) -> None:
        """Notes which trials do not train now, and what they do instead, such as `compiling`."""
        self.changed = self.changed or texts.keys() != self.preparing.keys()
        self.preparing = texts

    def finish(self, trial_id: str, state: str, front: Table, total: int, epochs: int) -> None:
        """Notes the end of a trial.

        Args:
            trial_id: of the trial.
            state: in which it ended.
            front: which includes it.
            total: the number of trials now.
            epochs: its QAT epochs in all.
        """
        self.pace.end(trial_id, epochs, time.monotonic())
        if self.states.get(trial_id) == STOPPED and state != STOPPED:
            self.released.add(trial_id)
        self._forget_state(trial_id)
        self.states[trial_id] = state
        self.counts[state] += 1
        self._forget(trial_id)
        self.total = max(total, self.done)
        self._guess()
        self.front = front
        self.screen.update(self.done, self.total)
        self.tick(now=self.done == self.total and not self.running)

    def forget(self, trial_id: str) -> None:
        """Notes that a trial no longer runs, because its worker is lost."""
        self.pace.drop(trial_id)
        self._forget(trial_id)

    def _forget(self, trial_id: str) -> None:
        self.running.pop(trial_id, None)
        self.doing.pop(trial_id, None)
        self.changed = True

    def _forget_state(self, trial_id: str) -> None:
        if trial_id in self.states:
            self.counts[self.states.pop(trial_id)] -= 1

    def _guess(self) -> None:
        left = self.pace.seconds_left(self._waiting)
        self.end = 0.0 if left is None else time.monotonic() + left

    def summary(self) -> str:
        """One line: `12/35 done, 2 running, 1 diverged, 197/525 epochs, about 3 min left`.

        While comparisons get more seeds, these are counted instead of trials, because each look adds new trials.
        """
        parts = [] if self.decisions else [f"{self.done}/{self.total} done"]
        parts.append(f"{len(self.running)} running")
        parts += [f"{n} {state}" for state, n in sorted(self.counts.items()) if n and state not in ("ok", STOPPED)]
        if stopped := self.counts[STOPPED] + len(self.released):
            parts.append(f"{stopped} stopped")
        parts += [f"releasing {len(self._releasing)}"] if self._releasing else []
        parts += [f"{len(self.released)} released"] if self.released else []
        trained = self.pace.trained
        parts.append(f"{trained:,}/{trained + self.pace.left(self._waiting):,} epochs")
        left = self.end - time.monotonic()
        if left > 0 and (self.running or self._waiting):
            parts.append(f"about {left / 60:.0f} min left" if left > 90 else f"about {left:.0f} s left")
        return "; ".join([*([self.decisions] if self.decisions else []), ", ".join(parts)])

    def _texts(self) -> list[str]:
        """What each running trial does: `d2 w1 qat 3/8 95.1%`."""
        return [f"{name} {self.preparing.get(i, self.doing[i])}" for i, name in self.running.items()]

    def tick(self, now: bool = False) -> None:
        """Prints a plain line if one is due, or wanted now, without a live display; the recorder calls it often."""
        silent = time.monotonic() - self.line_at
        if not self.screen.is_live and (now or silent >= (CHANGED_LINE_S if self.changed else QUIET_LINE_S)):
            self.line_at, self.changed = time.monotonic(), False
            parts = [self.summary()]
            if self.front is not None and self.front.num_rows:
                rows = self.front.to_pylist()  # over one cost the last is the best
                row = max(reversed(rows), key=lambda row: self.metric.sign * row[self.metric.val])
                value = format_metric(self.metric, row[self.metric.val])
                best = f"best {named(self.metric, value)} at {say_costs(costs_in(self.front), row)}"
                parts.append(f"front of {self.front.num_rows}, {best}")
            more = len(self.running) - LINE_TRIALS
            doing = [*self._texts()[:LINE_TRIALS], *([f"{more} more"] if more > 0 else [])]
            self.out.print("; ".join([*parts, ", ".join(doing)] if doing else parts))

    def _below(self) -> list[Any]:
        """The lines below the bar."""
        running = [f"  {text}" for text in self._texts()[:LIVE_TRIALS]]
        if self.front is None or not self.front.num_rows:
            return [self.summary(), *running]
        hidden = max(0, self.front.num_rows - LIVE_FRONT_ROWS)
        title = f"front so far, the last {LIVE_FRONT_ROWS} of {self.front.num_rows}" if hidden else "front so far"
        rows = self.front.slice(hidden)
        return [self.summary(), *running, front_table(rows, set(self.varying), title, room=self.out.width)]
