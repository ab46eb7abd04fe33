"""The Optuna studies of a sweep: they choose what to try next and what to stop.

Optuna cannot prune a study with several objectives. So there are two studies in one journal: one samples, with the
metric against the costs of the front; the other has the metric alone, holds the curves and prunes (`curves.py`). Only
the driver asks and tells them. Each launch builds them again from the Parquet rows, which are the lasting record.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers._ga import BaseGASampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from qdtune.search.curves import make_curves, prune_quietly, replay_rungs
from qdtune.search.journal import make_journal
from qdtune.search.pareto_pruner import COSTS, GROUP, SIZE, ParetoPruner
from qdtune.search.pruners import SEEDS, make_pruner
from qdtune.search.samplers import choose_opening, experimental, make_distribution, make_sampler, read_params
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import DEFAULT_COSTS, find_known, front_of, front_values, weigh
from qdtune.spec.plan import draw_candidates, list_violations, make_trial
from qdtune.spec.sweep_file import Spec
from qdtune.store.cohorts import choose_further_seeds
from qdtune.store.folder import storage_errors
from qdtune.store.results import Epochs, Result, mean

TRIES = 10  # duplicate or infeasible proposals in a row, after which a configuration is drawn at random
REPEATS = 3  # the most trials of one configuration, if duplicates become replicates
Key = tuple[Any, ...]  # the axes, with values as in tables


@dataclass
class _Live:
    """A running trial in both studies."""

    trial: Configuration
    asked: optuna.Trial
    curve: optuna.Trial
    judged: bool
    epoch: int = 0
    pruned_by: str | None = None


class Study:
    """The studies of one sweep.

    Args:
        spec: resolved.
        path: of the journal, which replaces an older one; None keeps everything in memory.
        seed: of the sampler.
        unstoppable: trials that the pruner may not stop, because they have a result and are trained for their
            weights.

    Raises:
        StorageError: the journal cannot be written.
    """

    def __init__(
        self, spec: Spec, path: Path | None = None, seed: int = 0, unstoppable: Collection[str] = ()
    ) -> None:
        self.spec, self.unstoppable = spec, unstoppable
        self.space = {
            name: make_distribution(axis)
            for name, axis in spec.axes.items()
            if axis.choices is None or len(axis.choices) > 1
        }
        self.pruner = make_pruner(spec.early_terminate, spec.train.qat.epochs)
        self.live: dict[str, _Live] = {}
        self.asked: dict[str, optuna.Trial] = {}  # proposed, but not started yet
        self.seeds: dict[Key, dict[int, str]] = {}  # the state of each seed of what was proposed or started
        self.spare = draw_candidates(spec)
        self.opening: list[Configuration] | None = None  # not chosen yet
        objectives = front_of(spec.metric, spec.costs)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with storage_errors(path or Path()):
            storage = make_journal(path) if path else InMemoryStorage()
            self.search = optuna.create_study(
                study_name=spec.name,
                storage=storage,
                sampler=make_sampler(spec.method, spec.run_cap or 1, seed),
                directions=[one.direction for one in objectives],
            )
            self.curves = make_curves(spec, storage)
            with experimental():
                self.search.set_metric_names([one.name for one in objectives])
                self.curves.set_metric_names([spec.metric.val])

    def propose(self) -> Configuration | None:
        """The configuration to try next; None if the space holds no other.

        The first configurations are spread over the costs, which are known without training. Then the sampler
        proposes. It is told which proposals break a constraint or are duplicates, and these are not returned. With
        `duplicates: replicate` a duplicate comes back with new seeds, up to three times as many as the sweep has,
        if all its trials so far are `ok`.
        """
        if self.opening is None:
            self.opening = choose_opening(self.spec, self.seeds)
        if self.opening:
            self.search.enqueue_trial(self._params(self.opening.pop()))
        for _ in range(TRIES):
            asked = self.search.ask(self.space)
            if isinstance(self.search.sampler, BaseGASampler):  # Optuna does not ask it for enqueued trials
                frozen = self.search.get_trials(deepcopy=False)[asked.number]
                self.search.sampler.get_trial_generation(self.search, frozen)
            trial = make_trial(self.spec, read_params(self.spec, asked.params))
            broken = list_violations(self.spec, trial)
            for rule, excess in broken.items():
                asked.set_constraint(rule, excess)
            if max(broken.values(), default=0) > 0:
                self.search.tell(asked, state=TrialState.PRUNED)
            elif (fresh := self._fresh(trial)) is None:
                self.search.tell(asked, state=TrialState.FAIL)
            else:
                self.asked[fresh.trial_id] = asked
                return self._noted(fresh, "proposed")
        other = next((trial for trial in self.spare if trial.key not in self.seeds), None)
        return other and self._noted(other, "proposed")

    def start(self, trial: Configuration, judged: bool = True) -> None:
        """Notes that a trial runs, for the first time or again.

        Args:
            judged: whether the pruner may stop it.
        """
        if trial.trial_id in self.live:
            return
        self._noted(trial, "running")
        asked = self.asked.pop(trial.trial_id, None)
        if asked is None:
            asked = self._add(self.search, trial)
        else:
            for name, value in self._attributes(trial).items():
                asked.set_user_attr(name, value)
        self.live[trial.trial_id] = _Live(
            trial, asked, self._add(self.curves, trial), judged and trial.trial_id not in self.unstoppable
        )

    def report(
        self, trial_id: str, epoch: int, values: list[float | None], earlier: Epochs | None = None
    ) -> str | None:
        """Notes the metric (a value per seed) after a QAT epoch (from 1); returns what stops the trial.

        That is the id of the trial that beat it, or the rule's name if no single trial did, or None.

        Args:
            trial_id: of a running trial.
            epoch, values: of the report.
            earlier: the epochs before it if it goes on from a checkpoint. An earlier launch has judged them, so they
                stop nothing now.
        """
        live = self.live[trial_id]
        if epoch <= live.epoch:  # it lost its worker and started again, with the same numbers
            return None
        for epoch_before, values_before in (earlier or {}).items():
            if epoch_before > live.epoch:
                self._note_epoch(live, epoch_before, values_before)
                if live.judged and self.pruner is not None and self.spec.early_terminate.pruner.has_rungs:
                    self._judge(self.pruner, live)  # leaves the marks of the rungs
        self._note_epoch(live, epoch, values)
        if live.judged and self.pruner is not None:
            live.pruned_by = self._judge(self.pruner, live)
        return live.pruned_by

    def _note_epoch(self, live: _Live, epoch: int, values: list[float | None]) -> None:
        live.epoch = epoch
        if self._by_seed:
            live.curve.set_user_attr(f"{SEEDS}{epoch}", values)
        live.curve.report(mean(values), epoch)

    def _judge(self, pruner: BasePruner, live: _Live) -> str | None:
        frozen = self.curves._storage.get_trial(live.curve._trial_id)
        if isinstance(pruner, ParetoPruner):
            rival = pruner.rival(self.curves, frozen)
            return None if rival is None else rival.user_attrs["trial_id"]
        return self.spec.early_terminate.type if prune_quietly(pruner, self.curves, frozen) else None

    def pruned_by(self, trial_id: str) -> str | None:
        """The return value of the latest `report` of a running trial."""
        return self.live[trial_id].pruned_by if trial_id in self.live else None

    def finish(self, trial_id: str, state: str, score: float | None = None, curve: Epochs | None = None) -> None:
        """Notes the end of a trial.

        Args:
            state: as in the tables.
            score: as `Result.score`, if the state is `ok`.
            curve: all epochs; those not reported yet, such as the last one, are added.
        """
        live = self.live.pop(trial_id, None)
        if live is None:
            return
        self._noted(live.trial, state)
        for epoch, values in (curve or {}).items():
            if epoch > live.epoch:
                self._note_epoch(live, epoch, values)
        for study, trial in ((self.search, live.asked), (self.curves, live.curve)):
            trial.set_user_attr("state", state)
            if live.pruned_by:
                trial.set_user_attr("pruned_by", live.pruned_by)
            if state == "ok":
                told = front_values(live.trial, self._value_of(score), self.spec.costs)
                study.tell(trial, told if study is self.search else told[:1])
            else:
                study.tell(trial, state=_optuna_state(state))

    def close(self) -> None:
        """Notes that nothing runs any more; for Optuna a trial that has not ended is a failure."""
        for trial_id in list(self.live):
            self.finish(trial_id, "interrupted")
        for asked in self.asked.values():
            self.search.tell(asked, state=TrialState.FAIL)
        self.asked.clear()

    def restore(self, results: Iterable[Result]) -> None:
        """Adds earlier results to the new studies, in the order given."""
        searched, curves, complete = [], [], 0
        for result in results:
            trial, state = self._noted(result.trial, result.state), _optuna_state(result.state)
            known: dict[str, Any] = {
                "state": state,
                "params": self._params(trial),
                "distributions": self.space,
                "user_attrs": self._attributes(trial, result),
            }
            judged = self._value_of(result.score)
            values = None if judged is None else front_values(trial, judged, self.spec.costs)
            frozen = create_trial(values=values, constraints=list_violations(self.spec, trial), **known)
            if isinstance(self.search.sampler, BaseGASampler) and state == TrialState.COMPLETE:
                generation = complete // (self.search.sampler.population_size or 1)
                frozen.system_attrs[self.search.sampler._get_generation_key()] = generation
                complete += 1
            searched.append(frozen)
            means = {epoch: mean(by_seed) for epoch, by_seed in result.curve.items()}
            last = next(reversed(means.values()), math.nan) if state == TrialState.PRUNED else judged
            value = None if last is None or math.isnan(last) else last
            curves.append(create_trial(value=value, intermediate_values=means, **known))
        if self.spec.early_terminate.pruner.has_rungs:
            curves = replay_rungs(self.spec, self.pruner, curves)
        self.search.add_trials(searched)
        self.curves.add_trials(curves)

    def _value_of(self, score: float | None) -> float | None:
        """The metric at a score: the studies hold metrics, so that Optuna's dashboard shows them."""
        return None if score is None else self.spec.metric.sign * score

    @property
    def _by_seed(self) -> bool:
        return self.spec.early_terminate.pruner.is_by_seed

    def _fresh(self, trial: Configuration) -> Configuration | None:
        """The trial if it is new, or the same with new seeds if duplicates become replicates."""
        used = self.seeds.get(trial.key)
        if not used:
            return trial
        limit = REPEATS * len(self.spec.seeds) if self.spec.duplicates == "replicate" else 0
        if len(used) >= limit or set(used.values()) != {"ok"}:
            return None
        return replace(trial, seeds=choose_further_seeds(used, len(self.spec.seeds)))

    def _noted(self, trial: Configuration, state: str) -> Configuration:
        self.seeds.setdefault(trial.key, {}).update(dict.fromkeys(trial.seeds, state))
        return trial

    def _params(self, trial: Configuration) -> dict[str, Any]:
        return {name: trial.cells[name] for name in self.space}

    def _attributes(self, trial: Configuration, result: Result | None = None) -> dict[str, Any]:
        """The user attributes of a trial at its start, and at its end with the result."""
        known: dict[str, Any] = {"trial_id": trial.trial_id, SIZE: trial.sizes.size_bytes}
        if (costs := self.spec.costs) != DEFAULT_COSTS:
            known[COSTS] = list(weigh(costs, [find_known(trial, one.name) for one in costs]))
        if group := self.spec.early_terminate.group_of(trial.cells):
            known[GROUP] = list(group)
        if result is None:
            return known
        known |= {"state": result.state} | ({"pruned_by": result.pruned_by} if result.pruned_by else {})
        return known | ({f"{SEEDS}{e}": list(v) for e, v in result.curve.items()} if self._by_seed else {})

    def _add(self, study: optuna.Study, trial: Configuration) -> optuna.Trial:
        """A running trial with these parameters, added without asking the sampler."""
        added = create_trial(
            state=TrialState.RUNNING,
            params=self._params(trial),
            distributions=self.space,
            user_attrs=self._attributes(trial),
            constraints=list_violations(self.spec, trial),
        )
        # As `Study.add_trial`, which does not return the new id; a search through all trials gets slower and slower.
        return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=added))


def _optuna_state(state: str) -> TrialState:
    return {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(state, TrialState.FAIL)
