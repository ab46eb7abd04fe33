"""The study of the metric alone: it holds the curve of every trial, and the pruner judges by it."""

from __future__ import annotations

import warnings

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from qdtune.spec.sweep_file import Spec


def make_curves(spec: Spec, storage: BaseStorage) -> optuna.Study:
    """A new study of the curves of a sweep; its sampler is never asked."""
    return optuna.create_study(
        study_name=f"{spec.name}-curves",
        storage=storage,
        sampler=RandomSampler(seed=0),
        direction=spec.metric.direction,
    )


def prune_quietly(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether the pruner stops the trial; hides NumPy's warnings about a curve that is not a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return pruner.prune(study, trial)


def replay_rungs(spec: Spec, pruner: BasePruner | None, curves: list[FrozenTrial]) -> list[FrozenTrial]:
    """The same trials with the marks of successive halving, which has to see every curve again, epoch by epoch."""
    scratch = make_curves(spec, InMemoryStorage())
    for frozen in curves:
        running = create_trial(
            state=TrialState.RUNNING,
            params=frozen.params,
            distributions=frozen.distributions,
            user_attrs=frozen.user_attrs,
        )
        scratch.add_trial(running)
        trial = optuna.Trial(scratch, scratch.get_trials(deepcopy=False)[-1]._trial_id)
        for epoch, value in frozen.intermediate_values.items():
            trial.report(value, epoch)
            if pruner is not None:
                prune_quietly(pruner, scratch, scratch.get_trials(deepcopy=False)[trial.number])
        scratch.tell(trial, frozen.value if frozen.state == TrialState.COMPLETE else None, frozen.state)
    return scratch.get_trials(deepcopy=False)
