"""Which trials are not worth finishing: a pruner that keeps a Pareto front, and Optuna's own, made aware of size.

All are `optuna.pruners.BasePruner`s for a study of one metric, up or down. They expect its values reported at QAT
epochs from 1, and user attributes on every trial: `SIZE`, its bytes, known before training; `COSTS`, if the front is
over others; `GROUP`, if it is judged only by trials that have the same one; and, for the Wilcoxon test, under `SEEDS`
and the epoch, the values of its seeds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import singledispatch
from operator import le
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
from optuna.study import Study
from optuna.trial import FrozenTrial

from qdtune.search.pareto_pruner import ParetoPruner, costs_of, group_of, sign_of
from qdtune.search.samplers import experimental
from qdtune.spec.early_terminate import EarlyTerminate
from qdtune.spec.pruners import (
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
        return self.by_sign[sign_of(study)].prune(study, trial)


class PeerScope(BasePruner):
    """Shows a pruner only trials of the group of the one that it judges.

    Args:
        inner: the pruner.
        by_size: whether it sees none that exceeds one of its costs, such as its size.
    """

    def __init__(self, inner: BasePruner, by_size: bool = True) -> None:
        self.inner, self.by_size = inner, by_size

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        costs, group = costs_of(trial), group_of(trial)

        def show(other: FrozenTrial) -> FrozenTrial | None:
            is_peer = group_of(other) == group
            return other if is_peer and (not self.by_size or all(map(le, costs_of(other), costs))) else None

        view = _view(study, show)
        return self.inner.prune(view, trial)


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
