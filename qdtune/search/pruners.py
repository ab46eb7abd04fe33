"""Which trials are not worth finishing: a pruner that keeps a Pareto front, and Optuna's own, made aware of size.

All are `optuna.pruners.BasePruner`s for a study of one metric, up or down. They expect its values reported at QAT
epochs from 1, and user attributes on every trial: `SIZE`, its bytes, known before training; `GROUP`, if it is judged
only by trials that have the same one; and, for the Wilcoxon test, under `SEEDS` and the epoch, the values of its
seeds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
    WilcoxonPruner,
)
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from qdtune.messages import describe_unknown
from qdtune.search.samplers import experimental
from qdtune.spec.pruners import (
    SIGNALS,
    EarlyTerminate,
    Hyperband,
    Median,
    NoPruner,
    Pareto,
    Patient,
    Percentile,
    Pruner,
    ScopedPruner,
    SuccessiveHalving,
    Threshold,
    Wilcoxon,
)

SIZE = "size_bytes"
GROUP = "group"
SEEDS = "values_of_seeds_epoch_"


def make_pruner(rule: EarlyTerminate, epochs: int) -> BasePruner | None:
    """The pruner that a sweep file asks for, None for `none`.

    Args:
        rule: its type and options.
        epochs: of QAT.
    """
    wanted = rule.pruner
    with experimental():
        pruner = build_pruner(wanted, epochs)
    if pruner is None or not isinstance(wanted, ScopedPruner) or (wanted.scope == "all" and not wanted.within):
        return pruner
    return PeerScope(pruner, by_size=wanted.scope == "size")


@singledispatch
def build_pruner(wanted: Pruner, epochs: int) -> BasePruner | None:
    """The pruner that `wanted` describes, blind to its `scope`; each pruner registers its builder below.

    Args:
        wanted: one of `spec.pruners.PRUNERS`, with its values.
        epochs: of QAT.

    Raises:
        NotImplementedError: it has no builder.
    """
    raise NotImplementedError(
        f"pruner {wanted.name} must have a builder, got none: register one in search/pruners.py"
    )


@build_pruner.register
def _build_none(wanted: NoPruner, epochs: int) -> None:
    return None


@build_pruner.register
def _build_pareto(wanted: Pareto, epochs: int) -> BasePruner:
    return ParetoPruner(wanted.margin, wanted.signal, wanted.min_epochs, wanted.patience)


@build_pruner.register
def _build_median(wanted: Median, epochs: int) -> BasePruner:
    return MedianPruner(wanted.n_startup_trials, wanted.n_warmup_steps, wanted.interval_steps)


@build_pruner.register
def _build_percentile(wanted: Percentile, epochs: int) -> BasePruner:
    return PercentilePruner(wanted.percentile, wanted.n_startup_trials, wanted.n_warmup_steps, wanted.interval_steps)


@build_pruner.register
def _build_hyperband(wanted: Hyperband, epochs: int) -> BasePruner:
    return HyperbandPruner(wanted.min_resource, epochs, wanted.reduction_factor)


@build_pruner.register
def _build_successive_halving(wanted: SuccessiveHalving, epochs: int) -> BasePruner:
    return SuccessiveHalvingPruner(wanted.min_resource, wanted.reduction_factor)


@build_pruner.register
def _build_patient(wanted: Patient, epochs: int) -> BasePruner:
    return PatientPruner(None, wanted.patience, wanted.min_delta)


@build_pruner.register
def _build_threshold(wanted: Threshold, epochs: int) -> BasePruner:
    return WorstAllowed(wanted.lower, wanted.n_warmup_steps, wanted.interval_steps)


@build_pruner.register
def _build_wilcoxon(wanted: Wilcoxon, epochs: int) -> BasePruner:
    return SeedWilcoxon(wanted.p_threshold, wanted.n_warmup_steps)


class ParetoPruner(BasePruner):
    """Stops a trial when another one of no larger size, and of its group, is ahead of it, so that the front survives.

    A large model never stops a small one. Small ones do stop larger ones, by evidence only: more than `margin` ahead
    at the same epoch, at each of the last `patience` epochs. Trials that still run, and trials that were stopped
    themselves, count at the epochs they reached; one that has failed or diverged does not.

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
        standings = self._standings.setdefault(study, _Standings(self._scores, _sign(study)))
        standings.update(study.get_trials(deepcopy=False))
        own = self._scores(trial.intermediate_values, _sign(study))
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


class _Standings:
    """Who leads at which epoch in a study; it reads a trial that has ended once, for there may be many thousands.

    Args:
        scores: from the values of a trial and the sign of the metric to a score by epoch.
        sign: 1 if the metric goes up, -1 if it goes down.
    """

    def __init__(self, scores: Callable[[dict[int, float], int], dict[int, float]], sign: int) -> None:
        self.scores, self.sign = scores, sign
        self.trials: list[FrozenTrial] = []
        self.running: set[int] = set()
        self.sizes = np.empty(0)  # by number of the trial, with room for more
        self.groups = np.empty(0)  # the same: the place of its group in `known`
        self.known: dict[tuple[Any, ...], int] = {}
        self.by_epoch: dict[int, np.ndarray] = {}  # scores by number; minus infinity where there is none that counts

    def update(self, trials: list[FrozenTrial]) -> None:
        """Reads what is new in all trials of the study, in the order of their numbers."""
        fresh = range(len(self.trials), len(trials))
        self.trials = trials
        self.sizes, self.groups = (_with_room(column, len(trials)) for column in (self.sizes, self.groups))
        for number in self.running.union(fresh):
            trial = trials[number]
            if trial.state == TrialState.WAITING:
                self.running.add(number)
                continue
            self.sizes[number] = trial.user_attrs[SIZE]
            self.groups[number] = self.known.setdefault(_group(trial), len(self.known))
            values = trial.intermediate_values
            counts = trial.state != TrialState.FAIL and not any(map(math.isnan, values.values()))
            for epoch, score in self.scores(values, self.sign).items():
                column = _with_room(self.by_epoch.get(epoch, np.empty(0)), len(trials))
                column[number] = score if counts else -math.inf
                self.by_epoch[epoch] = column
            (self.running.discard if trial.state.is_finished() else self.running.add)(number)

    def find_leader(self, epoch: int, trial: FrozenTrial) -> tuple[float, FrozenTrial | None]:
        """The best score of others of no larger size at an epoch, and the smallest, oldest trial that has it."""
        column = self.by_epoch.get(epoch, np.empty(0))[: len(self.trials)]
        known = len(column)
        peers = self.groups[:known] == self.known.get(_group(trial), -1)
        scores = np.where(peers & (self.sizes[:known] <= trial.user_attrs[SIZE]), column, -math.inf)
        scores[trial.number : trial.number + 1] = -math.inf
        best = scores.max(initial=-math.inf)
        if best == -math.inf:
            return best, None
        equals = np.flatnonzero(scores == best)
        return best, self.trials[equals[np.argmin(self.sizes[equals])]]


def _with_room(column: np.ndarray, count: int) -> np.ndarray:
    """`column` with room for `count` numbers or more; those that are new are minus infinity."""
    if len(column) >= count:
        return column
    return np.concatenate([column, np.full(2 * count - len(column), -math.inf)])


class WorstAllowed(BasePruner):
    """Optuna's ThresholdPruner with the one limit that counts: the lower one if the metric goes up, else the upper.

    Args:
        limit: in the unit of the metric; a worse trial is stopped.
        n_warmup_steps, interval_steps: as in Optuna.
    """

    def __init__(self, limit: float, n_warmup_steps: int, interval_steps: int) -> None:
        steps = {"n_warmup_steps": n_warmup_steps, "interval_steps": interval_steps}
        self.by_sign = {1: ThresholdPruner(lower=limit, **steps), -1: ThresholdPruner(upper=limit, **steps)}

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self.by_sign[_sign(study)].prune(study, trial)


def _sign(study: Study) -> int:
    """What to multiply a value of a study by so that more is better."""
    return -1 if study.direction == StudyDirection.MINIMIZE else 1


class PeerScope(BasePruner):
    """Shows a pruner only trials of the group of the one that it judges.

    Args:
        inner: the pruner.
        by_size: whether it sees none that is larger.
    """

    def __init__(self, inner: BasePruner, by_size: bool = True) -> None:
        self.inner, self.by_size = inner, by_size

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        size, group = trial.user_attrs[SIZE] if self.by_size else math.inf, _group(trial)
        view = _view(study, lambda t: t if t.user_attrs[SIZE] <= size and _group(t) == group else None)
        return self.inner.prune(view, trial)


def _group(trial: FrozenTrial) -> tuple[Any, ...]:
    """The group of a trial; the journal turns a tuple into a list."""
    return tuple(trial.user_attrs.get(GROUP, ()))


class SeedWilcoxon(BasePruner):
    """Optuna's Wilcoxon test over the seeds: those of a trial against those of the best one, at the same epoch.

    Optuna's own takes the steps of a curve for the samples; but the epochs of one training depend on each other.

    Args:
        p_threshold: the p below which a trial is stopped.
        n_warmup_steps: the first epoch at which a trial may be stopped, as in Optuna.
    """

    def __init__(
        self, p_threshold: float = Wilcoxon.p_threshold, n_warmup_steps: int = Wilcoxon.n_warmup_steps
    ) -> None:
        self.inner, self.n_warmup_steps = WilcoxonPruner(p_threshold=p_threshold), n_warmup_steps

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        epoch = trial.last_step
        if epoch is None or epoch < self.n_warmup_steps:
            return False
        own = _by_seed(trial, epoch)
        if own is None or any(map(math.isnan, own.intermediate_values.values())):
            return False
        seeds = len(own.intermediate_values)
        return self.inner.prune(_view(study, lambda t: _by_seed(t, epoch, seeds)), own)


def _by_seed(trial: FrozenTrial, epoch: int, seeds: int | None = None) -> FrozenTrial | None:
    """The trial with a value per seed, at one epoch, for its curve; None where it has none, or not as many."""
    values = trial.user_attrs.get(f"{SEEDS}{epoch}")
    if values is None or seeds not in (None, len(values)):
        return None
    trial = copy.copy(trial)
    trial.intermediate_values = {k: math.nan if value is None else value for k, value in enumerate(values)}
    return trial


class _View:
    """A storage that shows some of the trials, or shows them otherwise; everything else is the storage behind it.

    The filter has to sit here and not in a subclass of Study: Hyperband builds a study of its own on the storage.
    """

    def __init__(self, base: BaseStorage, show: Callable[[FrozenTrial], FrozenTrial | None]) -> None:
        self.base, self.show = base, show

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Any = None) -> list[FrozenTrial]:
        trials = self.base.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        return [shown for trial in trials if (shown := self.show(trial)) is not None]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return BaseStorage.get_best_trial(self, study_id)  # type: ignore[arg-type]  # by way of get_all_trials


def _view(study: Study, show: Callable[[FrozenTrial], FrozenTrial | None]) -> Study:
    """The study as a pruner shall see it; what the pruner writes (rungs) reaches the study itself."""
    storage: Any = _View(study._storage, show)
    return Study(study_name=study.study_name, storage=storage, sampler=study.sampler)
