"""Our own pruner: it stops a trial when another one of no larger size, or no larger costs, is ahead of it.

It expects what `pruners` says of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from qdtune.messages import describe_unknown
from qdtune.spec.pruners import SIGNALS, Pareto

SIZE = "size_bytes"
COSTS = "costs"
GROUP = "group"


class ParetoPruner(BasePruner):
    """Stops a trial when another one of no larger costs and of its group is ahead of it, so that the front survives.

    Costs are the bytes, unless trials have others (`costs_of`). A large model never stops a small one. Small ones do
    stop larger ones, by evidence only: more than `margin` ahead at the same epoch, at each of the last `patience`
    epochs. Trials that still run, and trials that were stopped themselves, count at the epochs they reached; one that
    has failed or diverged does not.

    Args:
        margin: 0 or more, in the unit of the metric, by which the other one must be ahead.
        signal: what is compared: the `raw` metric, `best_so_far`, or `ema` (each epoch weighs as much as all before).
        min_epochs: the first epoch (from 1) that counts.
        patience: epochs in a row that must agree, 1 or more.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        margin: float = Pareto.margin,
        signal: str = Pareto.signal,
        min_epochs: int = Pareto.min_epochs,
        patience: int = Pareto.patience,
    ) -> None:
        if not margin >= 0:
            raise ValueError(f"margin must be 0 or more, got {margin}")
        if signal not in SIGNALS:
            raise ValueError(describe_unknown("signal ", signal, SIGNALS))
        if min_epochs < 1 or patience < 1:
            raise ValueError(f"min_epochs and patience must be 1 or more, got {min_epochs} and {patience}")
        self.margin, self.signal, self.min_epochs, self.patience = margin, signal, min_epochs, patience
        self._standings: WeakKeyDictionary[Study, _Standings] = WeakKeyDictionary()

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self.rival(study, trial) is not None

    def rival(self, study: Study, trial: FrozenTrial) -> FrozenTrial | None:
        """The trial that is furthest ahead of `trial` at its last epoch; None where it may go on."""
        last = trial.last_step
        if last is None or last - self.patience + 1 < self.min_epochs:
            return None
        standings = self._standings.setdefault(study, _Standings(self._scores, sign_of(study)))
        standings.update(study.get_trials(deepcopy=False))
        own = self._scores(trial.intermediate_values, sign_of(study))
        best = None
        for epoch in range(last - self.patience + 1, last + 1):
            score, best = standings.find_leader(epoch, trial)
            if not score > own.get(epoch, -math.inf) + self.margin:
                return None
        return best

    def _scores(self, values: dict[int, float], sign: int) -> dict[int, float]:
        """The signal at each epoch that has a number, as a score.

        Args:
            values: of the metric, by epoch.
            sign: 1 if the metric goes up, -1 if it goes down.
        """
        scores: dict[int, float] = {}
        before = None
        for epoch, value in sorted(values.items()):
            if math.isnan(value):
                continue
            now = sign * value
            if before is not None and self.signal == "best_so_far":
                now = max(before, now)
            elif before is not None and self.signal == "ema":
                now = (before + now) / 2
            scores[epoch] = before = now
        return scores


_EMPTY = np.empty(0)


class _Standings:
    """Who leads at which epoch in a study; it reads a trial that has ended once, for there may be many thousands.

    Args:
        scores: from the values of a trial and the sign of the metric to a score by epoch.
        sign: 1 if the metric goes up, -1 if it goes down.
    """

    def __init__(self, scores: Callable[[dict[int, float], int], dict[int, float]], sign: int) -> None:
        self.scores, self.sign = scores, sign
        self.trials: list[FrozenTrial] = []
        self.running: dict[int, int] = {}  # number -> how many of its values are read
        self.costs: tuple[np.ndarray, ...] = ()  # each of them by number of the trial, with room for more
        self.groups = np.empty(0)  # the same: the place of its group in `known`
        self.known: dict[tuple[Any, ...], int] = {}
        self.by_epoch: dict[int, np.ndarray] = {}  # scores by number; minus infinity where there is none that counts

    def update(self, trials: list[FrozenTrial]) -> None:
        """Reads what is new in all trials of the study, in the order of their numbers."""
        fresh = range(len(self.trials), len(trials))
        self.trials = trials
        self.groups = _with_room(self.groups, len(trials))
        self.costs = tuple(_with_room(column, len(trials)) for column in self.costs)
        for number in [*self.running, *fresh]:
            trial = trials[number]
            if trial.state == TrialState.WAITING:
                self.running[number] = 0
                continue
            values = trial.intermediate_values
            if not trial.state.is_finished() and self.running.get(number) == len(values) > 0:
                continue
            costs = costs_of(trial)
            self.costs = self.costs or tuple(_with_room(np.empty(0), len(trials)) for _ in costs)
            for column, cost in zip(self.costs, costs, strict=True):
                column[number] = cost
            self.groups[number] = self.known.setdefault(group_of(trial), len(self.known))
            counts = trial.state != TrialState.FAIL and not any(map(math.isnan, values.values()))
            for epoch, score in self.scores(values, self.sign).items():
                column = self.by_epoch.get(epoch, _EMPTY)
                if len(column) < len(trials):
                    column = self.by_epoch[epoch] = _with_room(column, len(trials))
                column[number] = score if counts else -math.inf
            if trial.state.is_finished():
                self.running.pop(number, None)
            else:
                self.running[number] = len(values)

    def find_leader(self, epoch: int, trial: FrozenTrial) -> tuple[float, FrozenTrial | None]:
        """The best score of others of no larger costs at an epoch, and the smallest, oldest trial that has it."""
        column = self.by_epoch.get(epoch, np.empty(0))[: len(self.trials)]
        known = len(column)
        peers = self.groups[:known] == self.known.get(group_of(trial), -1)
        for values, cost in zip(self.costs, costs_of(trial), strict=False):  # none before a trial has been read
            peers &= values[:known] <= cost
        scores = np.where(peers, column, -math.inf)
        scores[trial.number : trial.number + 1] = -math.inf
        best = scores.max(initial=-math.inf)
        if best == -math.inf:
            return best, None
        equals = np.flatnonzero(scores == best)
        first = np.lexsort([values[equals] for values in reversed(self.costs)])[0]
        return best, self.trials[equals[first]]


def _with_room(column: np.ndarray, count: int) -> np.ndarray:
    """`column` with room for `count` numbers or more; those that are new are minus infinity."""
    if len(column) >= count:
        return column
    return np.concatenate([column, np.full(2 * count - len(column), -math.inf)])


def sign_of(study: Study) -> int:
    """What to multiply a value of a study by so that more is better."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


def group_of(trial: FrozenTrial) -> tuple[Any, ...]:
    """The group of a trial; the journal turns a tuple into a list."""
    return tuple(trial.user_attrs.get(GROUP, ()))


def costs_of(trial: FrozenTrial) -> tuple[float, ...]:
    """What a trial costs, less is better: its bytes, or what its sweep has chosen instead."""
    found = trial.user_attrs.get(COSTS)
    return (trial.user_attrs[SIZE],) if found is None else tuple(found)
