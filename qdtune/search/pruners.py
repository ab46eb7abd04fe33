"""Which trials are not worth finishing: a pruner that keeps a Pareto front, and Optuna's own, made aware of size.

All are `optuna.pruners.BasePruner`s for a study of one metric, up or down. They expect its values reported at QAT
epochs from 1, and user attributes on every trial: `SIZE`, its bytes, known before training; and, for the Wilcoxon
test, under `SEEDS` and the epoch, the values of its seeds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

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
    is_scoped = isinstance(wanted, ScopedPruner) and wanted.scope == "size"
    return SizeScope(pruner) if pruner is not None and is_scoped else pruner


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
    """Stops a trial when another one of no larger size is ahead of it, so that no front member is in the way.

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

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return self.rival(study, trial) is not None

    def rival(self, study: Study, trial: FrozenTrial) -> FrozenTrial | None:
        """The trial that is furthest ahead of `trial` at its last epoch; None where it may go on."""
        last = trial.last_step
        if last is None or last - self.patience + 1 < self.min_epochs:
            return None
        alive = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED))
        size, sign = trial.user_attrs[SIZE], _sign(study)
        rivals = [
            other
            for other in alive
            if other.number != trial.number
            and other.user_attrs[SIZE] <= size
            and not any(map(math.isnan, other.intermediate_values.values()))
        ]
        best = None
        for epoch in range(last - self.patience + 1, last + 1):
            leads = [
                (self._at(other, epoch, sign), -other.user_attrs[SIZE], -other.number, other) for other in rivals
            ]
            *lead, best = max(leads, key=lambda entry: entry[:3], default=(-math.inf, None))
            if not lead[0] > self._at(trial, epoch, sign) + self.margin:
                return None
        return best

    def _at(self, trial: FrozenTrial, epoch: int, sign: int) -> float:
        """The signal at an epoch, as a score; minus infinity where it has not been reported, or is not a number.

        Args:
            sign: 1 if the metric goes up, -1 if it goes down.
        """
        values = trial.intermediate_values  # of all trials at each report, so nothing is copied that is not asked for
        if math.isnan(now := values.get(epoch, math.nan)):
            return -math.inf
        if self.signal == "raw":
            return sign * now
        known = [sign * v for e, v in sorted(values.items()) if e <= epoch and not math.isnan(v)]
        if self.signal == "best_so_far":
            return max(known)
        mean = known[0]
        for value in known[1:]:
            mean = (mean + value) / 2
        return mean


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


class SizeScope(BasePruner):
    """Shows a pruner only the trials that are not larger than the one it judges."""

    def __init__(self, inner: BasePruner) -> None:
        self.inner = inner

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        size = trial.user_attrs[SIZE]
        return self.inner.prune(_view(study, lambda t: t if t.user_attrs[SIZE] <= size else None), trial)


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
