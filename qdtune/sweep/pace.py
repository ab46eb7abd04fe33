"""How many epochs of a sweep are trained and left, and about how long the rest takes.

An epoch is one of the float warm-up or of QAT, of all seeds of a configuration together. A shared warm-up counts
once. Epochs that are trained twice count twice, so the number never falls. What is left shrinks when a trial is
stopped.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

RECENT_TRIALS = 12  # the pace is that of as many trials


@dataclass(frozen=True)
class Start:
    """What a launch finds.

    Attributes:
        states: trial_id -> the state of each trial that needs no further attempt.
        trained: the epochs that earlier launches have trained.
        checkpoints: trial_id -> the QAT epoch at which it goes on, of trials that are left.
        warmups: how many warm-ups are still to train, as far as known.
        released: the trials that were stopped, and then trained to their end all the same.
        stopped: trial_id -> the QAT epochs of each trial that is stopped.
    """

    states: Mapping[str, str] = field(default_factory=dict)
    trained: int = 0
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    warmups: int = 0
    released: frozenset[str] = frozenset()
    stopped: Mapping[str, int] = field(default_factory=dict)


@dataclass
class _Running:
    """A running trial: the QAT epoch that it has reached, its own warm-up epochs, and its times."""

    began: float
    is_new: bool  # whether its process had to start, too
    at: int = 0
    warmup: int = 0
    phase: str = ""
    trained_s: float = 0.0
    preparing_s: float = 0.0  # compiling, or waiting for a warm-up that another trial trains
    epochs: int = 0


class Pace:
    """The epochs of a running sweep and the time left.

    Args:
        warmup, qat: epochs of each phase.
        start: what the launch has found.
    """

    def __init__(self, warmup: int, qat: int, start: Start) -> None:
        self.warmup, self.qat = warmup, qat
        self.trained = start.trained
        self.resuming = dict(start.checkpoints)  # of trials that wait: the QAT epoch at which they go on
        self.ended = dict(start.stopped)  # the QAT epochs of trials that have ended; a stopped one may be released
        self.warmups = start.warmups
        self.running: dict[str, _Running] = {}
        recent = RECENT_TRIALS * max(warmup + qat, 1)
        self.epoch_s: deque[float] = deque(maxlen=recent)
        self.overhead_s: deque[float] = deque(maxlen=RECENT_TRIALS)  # of a trial, besides its epochs
        self.at_once = 0  # trials

    def begin(self, trial_id: str, now: float) -> None:
        """Notes that a trial begins."""
        is_new = len(self.running) == self.at_once
        at = self.resuming.pop(trial_id, self.ended.get(trial_id, 0))
        self.running[trial_id] = _Running(now, is_new, at)
        self.at_once = max(self.at_once, len(self.running))

    def add(self, trial_id: str, phase: str, epoch: int, resumed_at: int, seconds: float, preparing_s: float) -> None:
        """Notes an epoch of a running trial.

        Args:
            trial_id: of the trial.
            phase, epoch: of its report.
            resumed_at: the QAT epoch of the checkpoint from which it went on; 0 if it has none.
            seconds: that the epoch took.
            preparing_s: seconds since its report before that were no training.
        """
        one = self.running[trial_id]
        if phase == "warmup":
            if one.warmup == 0:
                self.warmups = max(0, self.warmups - 1)
            new, one.warmup = max(0, epoch - one.warmup), epoch
        else:
            if one.phase != "qat":
                one.at = resumed_at
            new, one.at = max(0, epoch - one.at), epoch
        one.phase = phase
        self.trained += new
        one.trained_s += seconds
        one.preparing_s += preparing_s
        one.epochs += new
        self.epoch_s.append(seconds)

    def end(self, trial_id: str, epochs: int, now: float) -> None:
        """Notes the end of a trial after so many QAT epochs in all."""
        one = self.running.pop(trial_id, None)
        if one is not None:
            new = max(0, epochs - one.at)
            self.trained += new  # the last epoch comes with the result
            if one.epochs and not one.is_new:
                last_s = new * one.trained_s / one.epochs
                self.overhead_s.append(max(0.0, now - one.began - one.trained_s - one.preparing_s - last_s))
        self.ended[trial_id] = epochs

    def drop(self, trial_id: str) -> None:
        """Notes that a trial has lost its worker."""
        one = self.running.pop(trial_id, None)
        if one is not None and one.phase == "warmup" and one.warmup < self.warmup:
            self.warmups += 1
        if one is not None:
            self.resuming[trial_id] = one.at  # as if its last epoch had a checkpoint; its next report tells

    def left(self, waiting: int) -> int:
        """The epochs left if so many trials have not begun."""
        running = sum(self.qat - min(one.at, self.qat) for one in self.running.values())
        running += sum(self.warmup - one.warmup for one in self.running.values() if one.phase == "warmup")
        silent = sum(not one.phase for one in self.running.values())
        warmups = min(self.warmups, waiting + silent) * self.warmup
        return max(0, waiting * self.qat - sum(self.resuming.values()) + running + warmups)

    def seconds_left(self, waiting: int) -> float | None:
        """About how many seconds the rest takes, without compiling; None before one trial's worth of epochs.

        No trial ends faster than at its own pace, so a large trial may run after all others have ended.
        """
        if len(self.epoch_s) < self.warmup + self.qat:
            return None
        each, overhead = statistics.fmean(self.epoch_s), statistics.median(self.overhead_s or [0.0])
        trials = waiting + len(self.running)
        work = self.left(waiting) * each + trials * overhead
        found = work / max(1, min(self.at_once, trials))
        own = [(self.qat - one.at) * one.trained_s / one.epochs for one in self.running.values() if one.epochs]
        return max([found, *own])
