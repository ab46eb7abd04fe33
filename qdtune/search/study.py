"""The Optuna study of a sweep: what to try next, what to stop, and a journal that optuna-dashboard shows live.

Optuna neither reports nor prunes where there are two objectives. So there are two studies in one journal: one of
accuracy (up) against bytes (down), which samples, and one of accuracy alone, which holds the curves and prunes. Both
are asked and told by the driver alone, and made anew from the Parquet rows at each launch, for those are the truth.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.samplers._ga import BaseGASampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from qdtune.search.pruners import SEEDS, SIZE, ParetoPruner, make_pruner
from qdtune.search.samplers import choose_opening, experimental, make_distribution, make_sampler
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import FRONT, VAL_ACCURACY, front_values
from qdtune.spec.plan import draw_candidates, list_violations, make_trial
from qdtune.spec.points import round_to_six_digits
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import cell_text
from qdtune.store.folder import storage_errors
from qdtune.store.results import Epochs, Result, mean

TRIES = 10  # proposals in a row that may be repeated or infeasible, before one is drawn at random
REPEATS = 3  # trials of one configuration, at most, where duplicates become replicates
Key = tuple[Any, ...]  # the axes, as they stand in tables


@dataclass
class _Live:
    """A trial that has not ended, in both studies."""

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
        path: of the journal, which is made anew; None keeps everything in memory.
        seed: of the sampler.

    Raises:
        StorageError: the journal cannot be made.
    """

    def __init__(self, spec: Spec, path: Path | None = None, seed: int = 0) -> None:
        self.spec = spec
        self.space = {
            name: make_distribution(axis)
            for name, axis in spec.axes.items()
            if axis.choices is None or len(axis.choices) > 1
        }
        self.pruner = make_pruner(spec.early_terminate, spec.train.qat.epochs)
        self.live: dict[str, _Live] = {}
        self.asked: dict[str, optuna.Trial] = {}  # proposed and not yet started
        self.seeds: dict[Key, dict[int, str]] = {}  # of what was started: seed -> state
        self.spare = draw_candidates(spec)
        self.opening = choose_opening(spec)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with storage_errors(path or Path()):
            storage = _journal(path) if path else InMemoryStorage()
            self.search = optuna.create_study(
                study_name=spec.name,
                storage=storage,
                sampler=make_sampler(spec.method, spec.run_cap or 1, seed),
                directions=[one.direction for one in FRONT],
            )
            self.curves = _curves(spec, storage)
            with experimental():
                self.search.set_metric_names([one.name for one in FRONT])
                self.curves.set_metric_names([VAL_ACCURACY.name])

    def propose(self) -> Configuration | None:
        """The configuration to try next; None where the space holds no other.

        The first ones are spread over the sizes, which are known without training; the sampler goes on from there.
        What breaks a constraint, or repeats what is known, is told to the sampler and not returned. With
        `duplicates: replicate` a repeated one comes back with new seeds, up to three times as many as the sweep has,
        once its trials so far are `ok`.
        """
        if self.opening:
            self.search.enqueue_trial(self._params(self.opening.pop()))
        for _ in range(TRIES):
            asked = self.search.ask(self.space)
            if isinstance(self.search.sampler, BaseGASampler):  # which what is enqueued has not asked
                frozen = self.search.get_trials(deepcopy=False)[asked.number]
                self.search.sampler.get_trial_generation(self.search, frozen)
            trial = self._trial(asked.params)
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
        """Notes that a trial runs; anew, if it did before.

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
            for name, value in _attributes(trial).items():
                asked.set_user_attr(name, value)
        self.live[trial.trial_id] = _Live(trial, asked, self._add(self.curves, trial), judged)

    def report(self, trial_id: str, epoch: int, accuracies: list[float | None]) -> str | None:
        """Notes the validation accuracies (one per seed) after a QAT epoch, from 1; returns what stops the trial.

        None if nothing does; else the id of the trial that beat it, or the rule's name where no single one did.
        """
        live = self.live[trial_id]
        if epoch <= live.epoch:  # it lost its worker and started anew; its numbers are the same again
            return None
        live.epoch = epoch
        if self._by_seed:
            live.curve.set_user_attr(f"{SEEDS}{epoch}", accuracies)
        live.curve.report(mean(accuracies), epoch)
        if live.judged and self.pruner is not None:
            live.pruned_by = self._judge(self.pruner, live)
        return live.pruned_by

    def _judge(self, pruner: BasePruner, live: _Live) -> str | None:
        frozen = self.curves._storage.get_trial(live.curve._trial_id)
        if isinstance(pruner, ParetoPruner):
            rival = pruner.rival(self.curves, frozen)
            return None if rival is None else rival.user_attrs["trial_id"]
        return self.spec.early_terminate.type if _quietly(pruner, self.curves, frozen) else None

    def pruned_by(self, trial_id: str) -> str | None:
        """What the latest report of a running trial returned."""
        return self.live[trial_id].pruned_by if trial_id in self.live else None

    def finish(self, trial_id: str, state: str, accuracy: float | None = None, curve: Epochs | None = None) -> None:
        """Notes the end of a trial.

        Args:
            state: as in the tables.
            accuracy: of validation, the mean of the seeds, where the state is `ok`.
            curve: for the epochs that have not been reported, as the last one is not.
        """
        live = self.live.pop(trial_id, None)
        if live is None:
            return
        self._noted(live.trial, state)
        for epoch, accuracies in (curve or {}).items():
            if epoch > live.epoch:
                live.curve.report(mean(accuracies), epoch)
        for study, trial in ((self.search, live.asked), (self.curves, live.curve)):
            trial.set_user_attr("state", state)
            if live.pruned_by:
                trial.set_user_attr("pruned_by", live.pruned_by)
            if state == "ok":
                values: Any = front_values(live.trial, accuracy) if study is self.search else [accuracy]
                study.tell(trial, values)
            else:
                study.tell(trial, state=_optuna_state(state))

    def close(self) -> None:
        """Notes that nothing runs any more: what has not ended is a failure in Optuna's eyes."""
        for trial_id in list(self.live):
            self.finish(trial_id, "interrupted")
        for asked in self.asked.values():
            self.search.tell(asked, state=TrialState.FAIL)
        self.asked.clear()

    def restore(self, results: Iterable[Result]) -> None:
        """Puts earlier results into the fresh studies, in the order given."""
        searched, curves, complete = [], [], 0
        for result in results:
            trial, state = self._noted(result.trial, result.state), _optuna_state(result.state)
            known: dict[str, Any] = {
                "state": state,
                "params": self._params(trial),
                "distributions": self.space,
                "user_attrs": _attributes(trial, result, self._by_seed),
            }
            values = None if result.accuracy is None else front_values(trial, result.accuracy)
            frozen = create_trial(values=values, constraints=list_violations(self.spec, trial), **known)
            if isinstance(self.search.sampler, BaseGASampler) and state == TrialState.COMPLETE:
                generation = complete // (self.search.sampler.population_size or 1)
                frozen.system_attrs[self.search.sampler._get_generation_key()] = generation
                complete += 1
            searched.append(frozen)
            means = {epoch: mean(accuracies) for epoch, accuracies in result.curve.items()}
            last = next(reversed(means.values()), math.nan) if state == TrialState.PRUNED else result.accuracy
            value = None if last is None or math.isnan(last) else last
            curves.append(create_trial(value=value, intermediate_values=means, **known))
        if self.spec.early_terminate.pruner.has_rungs:
            curves = self._climbed(curves)
        self.search.add_trials(searched)
        self.curves.add_trials(curves)
        self.opening = [trial for trial in self.opening if trial.key not in self.seeds]

    def _climbed(self, curves: list[FrozenTrial]) -> list[FrozenTrial]:
        """The same trials with the marks of successive halving, which has to see every curve again, as it came."""
        scratch = _curves(self.spec, InMemoryStorage())
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
                if self.pruner is not None:
                    _quietly(self.pruner, scratch, scratch.get_trials(deepcopy=False)[trial.number])
            scratch.tell(trial, frozen.value if frozen.state == TrialState.COMPLETE else None, frozen.state)
        return scratch.get_trials(deepcopy=False)

    @property
    def _by_seed(self) -> bool:
        return self.spec.early_terminate.pruner.is_by_seed

    def _trial(self, params: dict[str, Any]) -> Configuration:
        config = {}
        for name, axis in self.spec.axes.items():
            value = params[name] if name in params else (axis.choices or ())[0]
            if axis.choices is None:
                value = round_to_six_digits(value, axis.min, axis.max)  # type: ignore[attr-defined]
            config[name] = cell_text(value) if isinstance(value, tuple) else value
        return make_trial(self.spec, config)

    def _fresh(self, trial: Configuration) -> Configuration | None:
        """The trial if it is new, or the same with new seeds where that is wanted."""
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

    def _add(self, study: optuna.Study, trial: Configuration) -> optuna.Trial:
        """A running trial with these parameters, of which the sampler is not asked."""
        added = create_trial(
            state=TrialState.RUNNING,
            params=self._params(trial),
            distributions=self.space,
            user_attrs=_attributes(trial),
            constraints=list_violations(self.spec, trial),
        )
        # What `Study.add_trial` does, which does not tell the new id: to search it in all trials takes ever longer.
        return optuna.Trial(study, study._storage.create_new_trial(study._study_id, template_trial=added))


def choose_further_seeds(used: Iterable[int], count: int) -> tuple[int, ...]:
    """`count` seeds above all that are in use."""
    first = max(used) + 1
    return tuple(range(first, first + count))


def _curves(spec: Spec, storage: BaseStorage) -> optuna.Study:
    return optuna.create_study(
        study_name=f"{spec.name}-curves", storage=storage, sampler=RandomSampler(seed=0), direction="maximize"
    )


def _journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, path.with_name(f"{path.name}.lock")):
        old.unlink(missing_ok=True)
    return JournalStorage(_Journal(path))


class _Journal(BaseJournalBackend):
    """The journal in memory, and in a file for others to read: made anew at each launch, it is nobody's truth.

    So a disk that is full does not stop a sweep here, and what somebody else writes into the file is not read.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.logs, self.pending = path, [], b""  # type: tuple[Path, list[dict[str, Any]], bytes]

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        return iter(self.logs[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self.logs += [json.loads(line) for line in lines]
        self.pending += "".join(f"{line}\n" for line in lines).encode()
        with contextlib.suppress(OSError), open(self.path, "ab", buffering=0) as file:
            self.pending = self.pending[file.write(self.pending) :]


def _attributes(trial: Configuration, result: Result | None = None, by_seed: bool = False) -> dict[str, Any]:
    """What the studies note beside the parameters: at the start, and with the result at the end."""
    known = {"trial_id": trial.trial_id, SIZE: trial.sizes.size_bytes}
    if result is None:
        return known
    known |= {"state": result.state} | ({"pruned_by": result.pruned_by} if result.pruned_by else {})
    return known | ({f"{SEEDS}{e}": list(a) for e, a in result.curve.items()} if by_seed else {})


def _optuna_state(state: str) -> TrialState:
    return {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(state, TrialState.FAIL)


def _quietly(pruner: BasePruner, study: optuna.Study, trial: FrozenTrial) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, where a curve is not a number
        return pruner.prune(study, trial)
