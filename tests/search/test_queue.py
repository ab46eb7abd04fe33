"""Whole launches with an invented trainer: what runs, in which order, how often, and what the studies keep of it."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from qdtune.pareto import front
from qdtune.reach import neighbours_of
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.pruners import PRUNERS, ScopedPruner, pruner_of
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import FINAL
from qdtune.store.releases import find_to_release
from qdtune.store.results import Epochs, Result, mean

EPOCHS = 6
NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)
GRID = {"depth": [1, 2, 3], "weight_bits": [1, 2, 4, 8], "activation": ["identity", "relu"]}
STRICT = {"type": "pareto", "margin": 0.01, "risk": None}  # what is stopped stays stopped, unless nobody beats it
SMALL = {"depth": [1, 2], "weight_bits": [1, 4, 8]}
SEARCHES = ["random", "tpe", "nsga2", "qmc"]


def spec(axes: dict[str, list[Any]] = GRID, **given: Any) -> Spec:
    data = {
        "version": 1,
        "name": "a",
        "parameters": {axis: {"values": values} for axis, values in axes.items()},
        "data": {"dataset": "digits", "val_size": 100},
        "train": {"qat": {"epochs": EPOCHS}},
        "early_terminate": STRICT,
    }
    return Spec.model_validate(data | given)


def searching(run_cap: int, method: str = "tpe", axes: dict[str, list[Any]] = SMALL, **given: Any) -> Spec:
    return spec(axes, method=method, run_cap=run_cap, **given)


def queue_of(spec: Spec, earlier: Sequence[Result] = (), path: Path | None = None, seed: int = 0) -> Queue:
    return Queue(spec, plan(spec).trials, Study(spec, path, seed), earlier)


def result(trial: Configuration, state: str = "ok", accuracy: float = 0.5, curve: Sequence[float] = ()) -> Result:
    """A result whose seeds all did the same."""
    seen: Epochs = {e: [a] * len(trial.seeds) for e, a in enumerate(curve or [accuracy] * EPOCHS, 1)}
    by = "another" if state == "pruned" else None
    return Result(trial, state, accuracy if state == "ok" else None, seen, dict.fromkeys(seen, 1.0), by, NOW)


# --- a trainer


@dataclass
class Fate:
    """What a trial does if nobody stops it, and the epoch after which it loses its worker, once."""

    curve: Epochs
    state: str = "ok"
    lost_after: int | None = None


@dataclass
class Run:
    """One start of a trial: what was reported of it, and how it ended."""

    trial: Configuration
    fate: Fate
    judged: bool
    epoch: int = 0
    reported: dict[int, float] = field(default_factory=dict)
    result: Result | None = None


def flat(accuracy: float, seeds: int = 3, epochs: int = EPOCHS) -> Fate:
    return Fate({e: [accuracy] * seeds for e in range(1, epochs + 1)})


def drawn(chance: random.Random, trial: Configuration, trouble: float = 0.4) -> Fate:
    """A curve that rises at its own speed, with noise; in part with an end of another kind or a lost worker."""
    top, pace = chance.random(), chance.uniform(0.3, 3)
    curve: Epochs = {}
    for epoch in range(1, EPOCHS + 1):
        height = top * (1 - math.exp(-epoch / pace))
        curve[epoch] = [round(min(1, max(0, height + chance.gauss(0, 0.03))), 2) for _ in trial.seeds]
    lost_after = chance.randint(1, EPOCHS - 1) if chance.random() < trouble else None
    if chance.random() > trouble:
        return Fate(curve, "ok", lost_after)
    state = chance.choice(["diverged", "diverged alone", "failed", "oom", "timeout"])
    if state == "diverged alone":  # one replica has ended, the others go on
        for epoch in range(EPOCHS - 2, EPOCHS + 1):
            curve[epoch] = [None, *curve[epoch][1:]]
        return Fate(curve, "diverged", lost_after)
    last = chance.randint(1, EPOCHS - 1)
    curve = {e: a for e, a in curve.items() if e <= last}
    if state == "diverged":
        curve[last] = [None] * len(trial.seeds)
    return Fate(curve, state, lost_after)


class Trainer:
    """Trains what a queue gives, several at a time; whose epoch ends next is drawn.

    Args:
        fate: of each start of a trial.
        at_once: trials at the same time.
        look: called with the queue and the runs so far whenever nothing more can be started.
    """

    def __init__(
        self,
        fate: Callable[[Configuration], Fate],
        seed: int = 0,
        at_once: int = 3,
        look: Callable[[Queue, list[Run]], None] = lambda queue, runs: None,
    ) -> None:
        self.fate, self.chance, self.at_once, self.look = fate, random.Random(seed), at_once, look
        self.runs: list[Run] = []

    def train(self, queue: Queue) -> list[Run]:
        live: dict[str, Run] = {}
        while True:
            while len(live) < self.at_once and (trial := queue.next()):
                assert trial.trial_id not in live
                live[trial.trial_id] = Run(trial, self.fate(trial), queue.judged and trial.seeds == queue.spec.seeds)
                self.runs.append(live[trial.trial_id])
            self.look(queue, self.runs)
            if not live:
                assert queue.over
                return self.runs
            assert not queue.over
            run = live[self.chance.choice(sorted(live))]
            self._step(queue, run)
            if run.result is not None:
                del live[run.trial.trial_id]
                queue.ended(run.result)
                assert queue.study.pruned_by(run.trial.trial_id) is None

    def _step(self, queue: Queue, run: Run) -> None:
        """The next epoch, as the driver of a sweep sees it: the last one comes with the result and is not judged."""
        fate, trial = run.fate, run.trial
        if run.epoch == fate.lost_after:
            run.epoch, fate.lost_after = 0, None
        run.epoch += 1
        if run.epoch > len(fate.curve):  # it failed in this epoch
            run.result = self._result(run, fate.state, run.epoch - 1)
        elif run.epoch == len(fate.curve) and fate.state in ("ok", "diverged"):
            run.result = self._result(run, fate.state, run.epoch)
        else:
            by = queue.study.report(trial.trial_id, run.epoch, fate.curve[run.epoch])
            assert queue.study.pruned_by(trial.trial_id) == by
            if run.epoch in run.reported:
                assert by is None
            run.reported.setdefault(run.epoch, mean(fate.curve[run.epoch]))
            if by is not None:
                assert run.judged
                state = "diverged" if None in fate.curve[run.epoch] else "pruned"
                run.result = replace(self._result(run, state, run.epoch), pruned_by=by)

    def _result(self, run: Run, state: str, last: int) -> Result:
        curve = {e: a for e, a in run.fate.curve.items() if e <= last}
        accuracy = mean(curve[last]) if state == "ok" else None
        return Result(run.trial, state, accuracy, curve, dict.fromkeys(curve, 1.0), None, NOW)


def trainer_of(seed: int, **options: Any) -> Trainer:
    chance = random.Random(f"fates {seed}")
    return Trainer(lambda trial: drawn(chance, trial), seed, **options)


def flat_trainer(accuracies: dict[int, float], **options: Any) -> Trainer:
    """Every trial keeps one accuracy, which its bits decide."""
    return Trainer(lambda trial: flat(accuracies[trial.weight_bits], len(trial.seeds)), **options)


# --- the life of every pruner

SCOPES = [
    (pruner.name, scope)
    for pruner in PRUNERS
    for scope in (("size", "all") if issubclass(pruner, ScopedPruner) else ("",))
]


def rule(kind: str, scope: str) -> dict[str, Any]:
    """A rule that judges early."""
    eager = {"n_startup_trials": 2, "lower": 0.1, "p_threshold": 0.1, "percentile": 40.0}
    own = {key: value for key, value in eager.items() if key in pruner_of(kind).defaults()}
    return {"type": kind, **own} | ({"scope": scope} if scope else {})


def in_optuna(state: str) -> TrialState:
    return {"ok": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(state, TrialState.FAIL)


def check_studies(spec: Spec, search: optuna.Study, curves: optuna.Study, runs: list[Run]) -> None:
    """Both studies hold the runs, in the order of their starts, and nothing that has not ended."""
    started = [t for t in search.trials if "trial_id" in t.user_attrs]
    for study, trials in ((search, started), (curves, curves.trials)):
        assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
        assert [t.user_attrs["trial_id"] for t in trials] == [run.trial.trial_id for run in runs]
        for trial, run in zip(trials, runs, strict=True):
            assert run.result is not None
            assert trial.state == in_optuna(run.result.state)
            assert trial.user_attrs["state"] == run.result.state
            assert trial.user_attrs["size_bytes"] == run.trial.sizes.size_bytes
            assert trial.user_attrs.get("pruned_by") == run.result.pruned_by
            assert trial.params == {name: run.trial.cells[name] for name in trial.params}
            if run.result.state == "ok":
                assert trial.values == [run.result.score, run.trial.sizes.size_bytes][: len(study.directions)]
    for trial, run in zip(curves.trials, runs, strict=True):
        whole = {epoch: mean(accuracies) for epoch, accuracies in run.result.curve.items()}
        assert str(trial.intermediate_values) == str(whole)  # as text, where NaN is NaN


@pytest.mark.parametrize("on_disk", [False, True], ids=["memory", "journal"])
@pytest.mark.parametrize(("kind", "scope"), SCOPES)
def test_a_whole_launch_leaves_both_studies_as_it_was_told(kind, scope, on_disk, tmp_path):
    seeds = list(range(5 if kind == "wilcoxon" else 3))
    sweep = spec(early_terminate=rule(kind, scope), seeds=seeds, run={"order": "shuffled"})
    stopped = Counter()
    for seed in range(1 if on_disk else 3):
        path = tmp_path / "study.journal" if on_disk else None
        queue = queue_of(sweep, path=path)
        runs = trainer_of(seed).train(queue)
        check_studies(sweep, queue.study.search, queue.study.curves, runs)
        stopped.update(run.result.pruned_by is not None for run in runs)
        queue.study.finish(runs[0].trial.trial_id, "failed")  # again, by mistake
        queue.study.close()
        search, curves = queue.study.search, queue.study.curves
        if path:
            storage = JournalStorage(JournalFileBackend(str(path)))
            search, curves = (optuna.load_study(study_name=name, storage=storage) for name in ("a", "a-curves"))
        check_studies(sweep, search, curves, runs)
    if not on_disk:
        assert (stopped[True] > 0) is (kind != "none"), "the test sees no stop"


@pytest.mark.parametrize("method", SEARCHES)
@pytest.mark.parametrize("seed", range(3))
def test_a_search_leaves_both_studies_as_it_was_told(method, seed):
    sweep = searching(12, method, GRID, exclude=[{"depth": 1, "activation": "relu"}])
    queue = queue_of(sweep)
    check_studies(sweep, queue.study.search, queue.study.curves, trainer_of(seed).train(queue))


@pytest.mark.parametrize("kind", ["pareto", "median", "successive_halving"])
def test_a_launch_that_is_interrupted_leaves_nothing_running(kind):
    queue = queue_of(searching(8, early_terminate={"type": kind}))
    trials = [queue.next() for _ in range(3)]
    queue.study.report(trials[0].trial_id, 1, [0.5] * 3)
    queue.study.propose()  # and it never starts
    queue.study.close()
    queue.study.close()
    for study in (queue.study.search, queue.study.curves):
        assert study.trials
        assert {t.state for t in study.trials} <= {TrialState.FAIL, TrialState.PRUNED}
    assert queue.study.curves.trials[0].intermediate_values == {1: 0.5}


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
def test_restored_studies_hold_what_came_out(kind, scope):
    seeds = list(range(5 if kind == "wilcoxon" else 3))
    sweep = spec(early_terminate=rule(kind, scope), seeds=seeds, run={"order": "shuffled"})
    queue = queue_of(sweep)
    trainer_of(1).train(queue)
    results = list(queue.results.values())
    random.Random(0).shuffle(results)
    study = Study(sweep)
    study.restore(results)
    for found in (study.search, study.curves):
        assert [t.state for t in found.trials] == [in_optuna(r.state) for r in results]
        assert [t.user_attrs["trial_id"] for t in found.trials] == [r.trial.trial_id for r in results]
        assert [t.user_attrs.get("pruned_by") for t in found.trials] == [r.pruned_by for r in results]
        assert [t.params for t in found.trials] == [{n: r.trial.cells[n] for n in study.space} for r in results]
    for trial, r in zip(study.curves.trials, results, strict=True):
        assert str(trial.intermediate_values) == str({e: mean(a) for e, a in r.curve.items()})
        assert r.state != "ok" or trial.value == r.score
    sizes = [r.trial.sizes.size_bytes for r in results]
    assert [t.values for t in study.search.trials] == [
        [r.score, size] if r.state == "ok" else None for r, size in zip(results, sizes, strict=True)
    ]


@pytest.mark.parametrize(
    ("kind", "scope", "at_once"),
    [
        ("successive_halving", "all", 3),
        ("successive_halving", "size", 3),
        ("hyperband", "all", 1),  # its brackets go by number, and numbers by the order of ends
        ("hyperband", "size", 1),
    ],
)
def test_restored_trials_stand_on_the_same_rungs(kind, scope, at_once):
    sweep = spec(early_terminate={"type": kind, "scope": scope, "reduction_factor": 2}, run={"order": "shuffled"})
    queue = queue_of(sweep)
    runs = Trainer(trainer_of(2).fate, 2, at_once).train(queue)
    study = Study(sweep)
    study.restore(queue.results.values())
    marks = {t.user_attrs["trial_id"]: t.system_attrs for t in study.curves.trials}
    ended = Counter(run.trial.trial_id for run in runs)
    kept = [t for t in queue.study.curves.trials if ended[t.user_attrs["trial_id"]] == 1]
    assert [marks[t.user_attrs["trial_id"]] for t in kept] == [t.system_attrs for t in kept]
    assert len({str(sorted(t.system_attrs)) for t in kept}) > 1


# --- the order of a launch


def by_bits(trials: Sequence[Configuration]) -> list[tuple[int, int]]:
    return [(trial.weight_bits, len(trial.seeds)) for trial in trials]


def test_planned_then_wrongly_stopped_then_replicates_then_over():
    def fate(trial: Configuration) -> Fate:
        if trial.weight_bits == 2:  # leads, and then diverges
            return Fate({e: [0.8] * 3 for e in range(1, EPOCHS)} | {EPOCHS: [None] * 3}, "diverged")
        return flat({1: 0.3, 8: 0.5}[trial.weight_bits], len(trial.seeds))

    queue = queue_of(spec({"weight_bits": [1, 2, 8]}, replicate={"front": 5}))
    runs = Trainer(fate, seed=6).train(queue)
    assert [(run.trial.weight_bits, run.judged, run.result.state) for run in runs[:4]] == [
        (1, True, "ok"),
        (2, True, "diverged"),
        (8, True, "pruned"),
        (8, False, "ok"),  # nobody is left to be behind
    ]
    assert sorted((run.trial.weight_bits, run.trial.seeds) for run in runs[4:]) == [(1, (3, 4)), (8, (3, 4))]
    assert [run.judged for run in runs[4:]] == [False, False]
    assert queue.next() is None
    assert (queue.over, queue.left) == (True, 0)


def test_what_was_beaten_by_a_finished_trial_is_not_run_again():
    queue = queue_of(spec({"weight_bits": [1, 8]}))
    runs = flat_trainer({1: 0.9, 8: 0.5}, at_once=1).train(queue)
    assert [run.result.state for run in runs] == ["ok", "pruned"]


def test_an_equal_accuracy_at_no_larger_size_is_enough_to_stay_stopped():
    sweep = spec({"weight_bits": [1, 8]})
    small, large = plan(sweep).trials
    for best, again in ((0.5, 0), (0.51, 1)):
        earlier = [result(small), result(large, "pruned", curve=[0.1, best, 0.3])]
        assert len(flat_trainer({8: 0.6}).train(queue_of(sweep, earlier))) == again


# --- a risk

RISKY = {"type": "pareto", "margin": 0, "risk": 0.1}
LATE = [0.4, 0.4, 0.5, 0.5, 0.5, 0.6]  # of a finished trial that gained


def risky(stopped: dict[int, list[float]], late: int = 1) -> tuple[Spec, list[Result]]:
    """A sweep of 1 to 12 bits, its finished trials (of which `late` gained) and those that were stopped."""
    sweep = spec({"weight_bits": list(range(1, 13))}, early_terminate=RISKY)
    earlier = []
    for trial in plan(sweep).trials:
        if trial.weight_bits in stopped:
            earlier.append(result(trial, "pruned", curve=stopped[trial.weight_bits]))
        elif trial.weight_bits <= late:
            earlier.append(result(trial, accuracy=LATE[-1], curve=LATE))
        else:
            earlier.append(result(trial))
    return sweep, earlier


def released(sweep: Spec, earlier: Sequence[Result], ends: dict[int, float], at_once: int = 1) -> list[int]:
    """The bits of the trials that are trained again, in their order; each ends with its accuracy."""

    def fate(trial: Configuration) -> Fate:
        (before,) = [one for one in earlier if one.trial.trial_id == trial.trial_id]
        curve = [row[0] for row in before.curve.values()]
        return Fate({e: [a] * 3 for e, a in enumerate([*curve, *[ends[trial.weight_bits]] * EPOCHS][:EPOCHS], 1)})

    queue = queue_of(sweep, earlier)
    runs = Trainer(fate, at_once=at_once).train(queue)
    assert all(not run.judged for run in runs)
    assert set(queue.released) == {run.trial.trial_id for run in runs}
    finished = sum(one.state == "ok" for one in earlier)
    assert queue.unjudged == (set(queue.released) if finished < neighbours_of(sweep.early_terminate.risk) else set())
    assert queue.left == 0
    return [run.trial.weight_bits for run in runs]


def test_what_no_curve_like_it_could_reach_stays_stopped():
    assert released(*risky({12: [0.4, 0.4]}, late=0), {}) == []
    assert released(*risky({12: [0.3, 0.3]}), {}) == []


def test_what_one_curve_like_it_reached_is_released():
    assert released(*risky({12: [0.4, 0.4]}), {12: 0.5}) == [12]


def test_with_few_finished_everything_is_released():
    sweep, earlier = risky({12: [0.1, 0.1]}, late=0)
    assert released(sweep, earlier, {}) == []
    few = [one for one in earlier if one.trial.weight_bits > 3]
    few_sweep = spec({"weight_bits": list(range(4, 13))}, early_terminate=RISKY)
    assert released(few_sweep, few, {12: 0.2}) == [12]


def test_the_most_promising_one_is_released_first_and_what_it_comes_to_decides_about_the_others():
    stopped = {11: [0.45, 0.45], 12: [0.4, 0.4]}
    assert released(*risky(stopped), {11: 0.5, 12: 0.5}) == [11, 12]
    assert released(*risky(stopped), {11: 0.99}) == [11]  # now 12 would need more than any of them gained
    assert released(*risky(stopped), {11: 0.99, 12: 0.5}, at_once=2) == [11, 12]  # it does not wait for a free core


def test_a_trial_that_is_released_and_fails_is_not_tried_a_third_time():
    sweep, earlier = risky({12: [0.4, 0.4]})
    queue = queue_of(sweep, earlier)
    runs = Trainer(lambda trial: Fate({}, "failed")).train(queue)
    assert [run.trial.weight_bits for run in runs] == [12]


@pytest.mark.parametrize("seed", range(20))
def test_after_a_launch_with_a_risk_nothing_is_left_that_should_be_released(seed):
    sweep = spec(GRID, early_terminate=RISKY)
    queue = queue_of(sweep)
    trainer_of(seed, at_once=1 + seed % 4).train(queue)
    open_ones = {one.trial.trial_id for one in find_to_release(sweep, queue.results.values())}
    assert open_ones <= queue.again  # each was tried again in this launch
    assert queue.released.keys() <= queue.again


# --- groups


@pytest.mark.parametrize("rule", [STRICT | {"margin": 0}, {"type": "median"}, {"type": "median", "scope": "all"}])
@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_judged_as_if_it_were_alone(rule, seed):
    """Twice the same sweep: with all groups, and one group at a time."""

    def fate(trial: Configuration) -> Fate:
        return drawn(random.Random(f"{seed} {trial.trial_id}"), trial, trouble=0.1)

    def ends(levels: list[str]) -> dict[str, list[tuple[str, int]]]:
        axes = {"depth": [2, 3], "weight_bits": [1, 2, 3, 4, 6, 8], "levels": levels}
        queue = queue_of(spec(axes, early_terminate=rule | {"within": ["levels"]}))
        found: dict[str, list[tuple[str, int]]] = {}
        for run in Trainer(fate, at_once=1).train(queue):
            found.setdefault(run.trial.trial_id, []).append((run.result.state, run.epoch))
        return found

    apart = ends(["full"]) | ends(["symmetric"])
    assert ends(["full", "symmetric"]) == apart
    assert any(state == "pruned" for states in apart.values() for state, _ in states)


def test_what_is_released_would_have_to_reach_the_best_of_its_group():
    _, earlier = risky({12: [0.4, 0.4]}, late=0)
    other = spec(
        {"weight_bits": list(range(1, 13)), "act_bits": [None, 8]}, early_terminate=RISKY | {"within": ["act_bits"]}
    )
    for group, again in ((None, []), (8, [12])):
        trials = {(t.weight_bits, t.act_bits): t for t in plan(other).trials}
        moved = [replace(one, trial=trials[one.trial.weight_bits, None]) for one in earlier[:-1]]
        moved.append(replace(earlier[-1], trial=trials[12, group]))
        assert [one.trial.weight_bits for one in find_to_release(other, moved)] == again


@pytest.mark.parametrize(
    ("kind", "scope", "again"), [("median", "size", 1), ("median", "all", 0), ("patient", "", 0)]
)
def test_only_a_rule_that_keeps_the_front_has_stopped_wrongly(kind, scope, again):
    sweep = spec({"weight_bits": [1, 8]}, early_terminate=rule(kind, scope))
    small, large = plan(sweep).trials
    earlier = [result(small), result(large, "pruned", curve=[0.9])]
    assert len(flat_trainer({8: 0.9}).train(queue_of(sweep, earlier))) == again


def test_a_wrongly_stopped_trial_that_fails_is_not_tried_a_third_time():
    sweep = spec({"weight_bits": [1]})
    earlier = [result(plan(sweep).trials[0], "pruned", curve=[0.9])]
    queue = queue_of(sweep, earlier)
    runs = Trainer(lambda trial: Fate({}, "failed")).train(queue)
    assert [(run.judged, run.result.state) for run in runs] == [(False, "failed")]


def replicated(accuracies: dict[int, float], **replicate: Any) -> Counter[int]:
    """Seeds in the end, by bits, of a sweep in which each keeps one accuracy."""
    sweep = spec({"weight_bits": sorted(accuracies)}, early_terminate={"type": "none"}, replicate=replicate)
    queue = queue_of(sweep)
    runs = flat_trainer(accuracies).train(queue)
    seeds = [(run.trial.weight_bits, seed) for run in runs for seed in run.trial.seeds]
    assert len(set(seeds)) == len(seeds)
    return Counter(bits for bits, _ in seeds)


def test_the_front_and_what_is_close_behind_it_get_more_seeds():
    accuracies = {1: 0.5, 2: 0.49, 3: 0.47, 4: 0.8, 5: 0.79, 6: 0.3, 8: 0.9}
    assert replicated(accuracies, front=5, within=0.02) == {1: 5, 2: 5, 3: 3, 4: 5, 5: 5, 6: 3, 8: 5}
    assert replicated(accuracies, front=4, within=0.0) == {1: 4, 2: 3, 3: 3, 4: 4, 5: 3, 6: 3, 8: 4}


def test_replicates_are_trained_as_many_at_a_time_as_the_sweep_trains_together():
    sweep = spec({"weight_bits": [1]}, early_terminate={"type": "none"}, replicate={"front": 11})
    runs = flat_trainer({1: 0.5}).train(queue_of(sweep))
    assert sorted(run.trial.seeds for run in runs) == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)]


def test_replicates_can_bring_others_onto_the_front():
    # The leader falls back once it has more seeds, and then the second one is as good.
    sweep = spec({"weight_bits": [1, 8]}, early_terminate={"type": "none"}, replicate={"front": 6, "within": 0.0})

    def fate(trial: Configuration) -> Fate:
        return flat({(1, 0): 0.9, (1, 3): 0.1, (8, 0): 0.6, (8, 3): 0.6}[trial.weight_bits, trial.seeds[0]])

    runs = Trainer(fate).train(queue_of(sweep))
    assert [(run.trial.weight_bits, run.trial.seeds[0]) for run in runs[2:]] == [(1, 3), (8, 3)]


@pytest.mark.parametrize("state", ["failed", "diverged", "timeout"])
def test_replicates_that_do_not_end_well_do_not_loop(state):
    sweep = spec({"weight_bits": [1, 8]}, early_terminate={"type": "none"}, replicate={"front": 5})

    def fate(trial: Configuration) -> Fate:
        return flat(0.5) if len(trial.seeds) == 3 else Fate({1: [None] * 2}, state)

    runs = Trainer(fate).train(queue_of(sweep))
    assert sorted(by_bits([run.trial for run in runs])) == [(1, 2), (1, 3), (8, 2), (8, 3)]


def test_seeds_of_the_front_that_were_begun_are_trained_to_their_end_after_a_kill():
    """1 and 8 bits fall behind with (2, 3), which brings 4 bits onto the front; 8 bits still get (4,)."""
    given = {"early_terminate": {"type": "none"}, "replicate": {"front": 5}, "seeds": [0, 1]}
    sweep = spec({"weight_bits": [1, 4, 8]}, **given)

    def train(earlier: Sequence[Result]) -> list[Result]:
        queue = queue_of(sweep, earlier)
        levels = {1: 0.8, 4: 0.7, 8: 0.9}
        fates = Trainer(
            lambda t: flat(0.1 if t.seeds[0] > 1 and t.weight_bits != 4 else levels[t.weight_bits], len(t.seeds))
        )
        fates.train(queue)
        return list(queue.results.values())

    whole = train([])
    assert sorted(by_bits([r.trial for r in whole])) == [(bits, n) for bits in (1, 4, 8) for n in (1, 2, 2)]
    for count in range(len(whole)):
        assert {r.trial_id for r in train(whole[:count])} == {r.trial_id for r in whole}


def test_a_configuration_whose_replicate_diverged_gets_no_further_seeds_later():
    sweep = spec({"weight_bits": [1]}, early_terminate={"type": "none"}, replicate={"front": 5})
    trial = plan(sweep).trials[0]
    diverged = result(replace(trial, seeds=(3, 4)), "diverged")
    assert flat_trainer({1: 0.5}).train(queue_of(sweep, [diverged, result(trial)])) == []


# --- earlier launches


@pytest.mark.parametrize(
    ("kind", "state", "again"),
    [
        *[("pareto", state, state not in ("ok", "pruned", "diverged")) for state in ("ok", "pruned", "diverged")],
        *[("pareto", state, True) for state in ("failed", "oom", "timeout")],
        ("none", "pruned", True),
        ("none", "diverged", False),
    ],
)
@pytest.mark.parametrize("method", ["grid", "tpe"])
def test_only_what_may_end_otherwise_runs_again(method, kind, state, again):
    given = {"method": method} | ({"run_cap": 2} if method == "tpe" else {})
    sweep = spec({"weight_bits": [1, 8]}, early_terminate=STRICT if kind == "pareto" else {"type": kind}, **given)
    small, large = sorted(plan(sweep).trials, key=lambda trial: trial.weight_bits)
    queue = queue_of(sweep, [result(small, accuracy=0.9), result(large, state, accuracy=0.2)])
    runs = flat_trainer({8: 0.5}).train(queue)
    assert by_bits([run.trial for run in runs]) == ([(8, 3)] if again else [])
    assert set(queue.results) == {small.trial_id, large.trial_id}


def test_replicates_of_an_earlier_launch_are_not_run_again():
    sweep = spec({"weight_bits": [1, 8]}, replicate={"front": 5})
    queue = queue_of(sweep)
    first = flat_trainer({1: 0.5, 8: 0.9}).train(queue)
    assert len(first) == 4
    results = list(queue.results.values())
    random.Random(1).shuffle(results)
    assert flat_trainer({}).train(queue_of(sweep, results)) == []


@pytest.mark.parametrize("duplicates", ["resample", "replicate"])
@pytest.mark.parametrize("method", SEARCHES)
def test_a_search_counts_configurations_also_after_a_resume(method, duplicates):
    if method == "random":
        duplicates = "resample"
    before: list[Result] = []
    for cap in (12, 16):
        sweep = searching(cap, method, GRID, duplicates=duplicates, replicate={"front": 5, "within": 0.3})
        queue = queue_of(sweep, before)
        flat_trainer({1: 0.5, 2: 0.6, 4: 0.7, 8: 0.8}).train(queue)
        before = list(queue.results.values())
        assert len({r.trial.key for r in before}) == cap
        seeds = [(r.trial.key, seed) for r in before for seed in r.trial.seeds]
        assert len(set(seeds)) == len(seeds)


# --- how many there are, and how many are left


def check_counts(queue: Queue, runs: list[Run]) -> None:
    """`total - left` trials have ended for good, as far as is known."""
    open_ids = {trial.trial_id for trial in queue.waiting} | set(queue.running)
    assert queue.left >= len(open_ids)
    assert queue.total - queue.left == len(set(queue.results) - open_ids)


def test_what_ran_out_of_memory_runs_once_more_alone_and_in_the_end():
    sizes = {1: 2, 2: 1, 4: 2, 8: 0}  # how often each runs out

    def fate(trial: Configuration) -> Fate:
        sizes[trial.weight_bits] -= 1
        if sizes[trial.weight_bits] >= 0:
            return Fate({1: [0.5] * 3}, "oom")
        return flat(0.5)

    def alone(queue: Queue, runs: list[Run]) -> None:
        if queue.alone:
            assert len(queue.running) <= 1

    sweep = spec({"weight_bits": [1, 2, 4, 8]}, early_terminate={"type": "none"})
    queue = queue_of(sweep)
    runs = Trainer(fate, look=alone).train(queue)
    assert by_bits([run.trial for run in runs]) == [(1, 3), (2, 3), (4, 3), (8, 3), (1, 3), (2, 3), (4, 3)]
    assert {r.trial.weight_bits: r.state for r in queue.results.values()} == {1: "oom", 2: "ok", 4: "oom", 8: "ok"}
    assert (queue.left, queue.total, queue.over) == (0, 4, True)


def test_further_seeds_that_ran_out_of_memory_run_alone_too():
    ends = iter(["ok", "oom", "ok"])  # the configuration, its further seeds, and these once more

    def fate(trial: Configuration) -> Fate:
        state = next(ends)
        return flat(0.5, len(trial.seeds)) if state == "ok" else Fate({1: [0.5] * len(trial.seeds)}, state)

    queue = queue_of(spec({"weight_bits": [4]}, replicate={"front": 5}))
    runs = Trainer(fate).train(queue)
    assert [run.trial.seeds for run in runs] == [(0, 1, 2), (3, 4), (3, 4)]
    assert {r.state for r in queue.results.values()} == {"ok"}


@pytest.mark.parametrize("method", ["grid", *SEARCHES])
@pytest.mark.parametrize("replicate", [None, {"front": 5, "within": 0.1}])
@pytest.mark.parametrize("seed", range(3))
def test_counts_agree_and_what_stays_stopped_was_beaten(method, replicate, seed):
    given = {"method": method} | ({} if method == "grid" else {"run_cap": 12})
    sweep = spec(GRID, replicate=replicate, run={"order": "shuffled"}, **given)
    queue = queue_of(sweep)
    runs = trainer_of(seed, look=check_counts).train(queue)
    assert (queue.left, queue.total) == (0, len(queue.results))
    for trial_id, starts in Counter(run.trial.trial_id for run in runs).items():
        ends = [(run.judged, run.result.state) for run in runs if run.trial.trial_id == trial_id]
        why = [state for _, state in ends[:-1]]  # each is a reason to start again, once
        assert starts == 1 or (set(why) <= {"pruned", "oom"} and len(set(why)) == len(why))
        assert not any(judged for judged, _ in ends[1:])
    groups: dict[Any, list[Result]] = {}
    for r in queue.results.values():
        if r.state in FINAL:
            groups.setdefault(r.trial.key, []).append(r)
    ranked = [(rs[0].trial.sizes.size_bytes, rs) for rs in groups.values() if {r.state for r in rs} == {"ok"}]
    accuracies = [(size, mean([r.score for r in rs for _ in r.trial.seeds])) for size, rs in ranked]
    for r in queue.results.values():
        rivals = [accuracy for size, accuracy in accuracies if size <= r.trial.sizes.size_bytes]
        assert r.state != "pruned" or max(rivals, default=-1) >= max(r.scores, default=-1)


def test_what_is_left_of_a_resumed_search_counts_a_failed_trial_once():
    sweep = searching(4)
    a, b, c, d = plan(sweep).trials
    queue = queue_of(sweep, [result(a), result(b), result(c), result(d, "failed")])
    assert (queue.left, queue.total) == (1, 4)


def test_a_search_that_found_everything_running_goes_on_with_replicates_once_they_ended():
    sweep = searching(3, axes={"weight_bits": [1, 8]}, duplicates="replicate", early_terminate={"type": "none"})
    runs = flat_trainer({1: 0.5, 8: 0.6}, at_once=5).train(queue_of(sweep))
    assert {run.trial.seeds for run in runs[:2]} == {(0, 1, 2)}
    assert {run.trial.seeds for run in runs[2:]} >= {(3, 4, 5)}


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_without_crossing_curves_no_front_member_is_ever_stopped(at_once):
    stops = 0
    for seed in range(12):
        chance = random.Random(seed)
        sweep = spec(run={"order": chance.choice(["small_first", "large_first", "shuffled"])})
        shares = sorted(chance.random() for _ in range(EPOCHS))  # one shape of curve, so that who leads stays ahead
        # Few heights, and equal sizes with and without activation: ties of both kinds.
        tops = {trial.trial_id: chance.randint(1, 8) / 8 for trial in plan(sweep).trials}

        def fate(trial: Configuration, tops: dict[str, float] = tops, shares: list[float] = shares) -> Fate:
            return Fate({e: [tops[trial.trial_id] * share] * 3 for e, share in enumerate(shares, 1)})

        queue = queue_of(sweep)
        runs = Trainer(fate, seed, at_once).train(queue)
        costs = [(-tops[run.trial.trial_id], run.trial.sizes.size_bytes) for run in runs]
        for run, on in zip(runs, front(costs), strict=True):
            assert not (on and run.result.state == "pruned")
        stops += sum(run.result.state == "pruned" for run in runs)
    assert stops > 50


def test_waiting_for_the_last_trials_of_a_small_space_asks_the_sampler_for_nothing():
    queue = queue_of(searching(100))
    while queue.next():
        pass
    known = len(queue.study.search.trials)
    assert [queue.next() for _ in range(3)] == [None] * 3
    assert len(queue.study.search.trials) == known


def test_the_total_of_an_exhausted_space_is_what_it_held():
    queue = queue_of(searching(100))
    flat_trainer({1: 0.5, 4: 0.7, 8: 0.8}).train(queue)
    assert queue.total == len(queue.results) == 6


def test_the_total_of_a_resumed_search_counts_replicates_beside_the_cap():
    sweep = searching(4, replicate={"front": 5})
    a, b, c, _ = plan(sweep).trials
    more = [result(replace(trial, seeds=(3, 4))) for trial in (a, b)]
    queue = queue_of(sweep, [result(a), result(b), result(c), *more])
    assert (queue.left, queue.total) == (1, 6)


def test_a_replicate_that_failed_before_is_counted():
    sweep = spec({"weight_bits": [1, 8]}, replicate={"front": 5, "within": 0.0})
    small, large = plan(sweep).trials
    failed = result(replace(small, seeds=(3, 4)), "failed")
    queue = queue_of(sweep, [result(small, accuracy=0.9), result(large, accuracy=0.5), failed])
    flat_trainer({1: 0.9}, look=check_counts).train(queue)


def test_the_total_counts_repeated_configurations():
    queue = queue_of(searching(20, axes=GRID, duplicates="replicate", early_terminate={"type": "none"}))
    flat_trainer({1: 0.5, 2: 0.6, 4: 0.7, 8: 0.8}, look=check_counts).train(queue)
    assert queue.total == len(queue.results)


def test_a_configuration_that_was_finished_is_not_stopped_as_a_replicate():
    # It would leave the front, where only configurations stand whose every seed has come to its end.
    again = []
    for seed in range(3):
        queue = queue_of(searching(20, axes=GRID, duplicates="replicate"), seed=seed)
        chance = random.Random(seed)
        runs = Trainer(lambda trial, chance=chance: drawn(chance, trial, trouble=0.0), seed).train(queue)
        again += [run for run in runs if run.trial.seeds != queue.spec.seeds]
    assert len(again) > 3
    assert {run.result.state for run in again} == {"ok"}
