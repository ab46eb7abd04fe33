"""Trials that go on from a checkpoint: the studies know them as undisturbed ones, and no epoch counts twice."""

import random
from dataclasses import replace

import pytest

from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.plan import plan
from tests.search.test_queue import EPOCHS, SCOPES, flat, queue_of, result, rule, spec


def curves_of(study: Study) -> list[tuple[object, ...]]:
    """All that the pruner sees of each trial."""
    return [
        (t.user_attrs["trial_id"], t.state, t.intermediate_values, t.user_attrs, t.system_attrs)
        for t in study.curves.trials
    ]


def drawn_curves(sweep, seed):
    chance = random.Random(seed)
    return {
        trial.trial_id: {e: [chance.uniform(0.3, 0.6) for _ in trial.seeds] for e in range(1, EPOCHS + 1)}
        for trial in plan(sweep).trials
    }


@pytest.mark.parametrize(("kind", "scope"), SCOPES)
@pytest.mark.parametrize("judged", [True, False])
def test_the_study_of_a_resumed_trial_is_that_of_an_undisturbed_one(kind, scope, judged):
    sweep = spec({"weight_bits": [1, 2, 4, 8]}, seeds=[0, 1, 2, 3], early_terminate=rule(kind, scope))
    trials, curves = plan(sweep).trials, drawn_curves(sweep, 1)
    studies = []
    for resumed_at in (0, 3):
        study = Study(sweep)
        for trial in trials[:3]:  # rivals, which ran before
            study.start(trial, judged=False)
            for epoch in range(1, EPOCHS):
                study.report(trial.trial_id, epoch, curves[trial.trial_id][epoch])
            study.finish(trial.trial_id, "ok", 0.5, curves[trial.trial_id])
        last = trials[3].trial_id
        study.start(trials[3], judged)
        earlier = {e: curves[last][e] for e in range(1, resumed_at + 1)}
        answers = []
        for epoch in range(resumed_at + 1, EPOCHS):
            answers.append(study.report(last, epoch, curves[last][epoch], earlier))
            earlier = {}
        study.finish(last, "ok", 0.5, curves[last])
        studies.append((curves_of(study), answers[-2:]))
    assert studies[0] == studies[1]


@pytest.mark.parametrize("kind", ["wilcoxon", "pareto"])
def test_a_trial_of_which_only_the_last_epoch_is_left_has_its_whole_curve(kind):
    sweep = spec({"weight_bits": [1]}, seeds=[0, 1, 2, 3], early_terminate={"type": kind})
    (trial,), studies = plan(sweep).trials, []
    for reported in (range(1, EPOCHS), ()):
        study = Study(sweep)
        study.start(trial)
        for epoch in reported:
            study.report(trial.trial_id, epoch, flat(0.5, 4).curve[epoch])
        study.finish(trial.trial_id, "ok", 0.5, flat(0.5, 4).curve)
        studies.append(curves_of(study))
    assert studies[0] == studies[1]


def test_the_epochs_before_a_checkpoint_stop_nothing():
    sweep = spec({"weight_bits": [1]}, early_terminate={"type": "threshold", "lower": 0.4})
    (trial,) = plan(sweep).trials
    study = Study(sweep)
    study.start(trial)
    assert study.report(trial.trial_id, 3, [0.5] * 3, {1: [0.1] * 3, 2: [0.1] * 3}) is None
    assert study.report(trial.trial_id, 4, [0.1] * 3) == "threshold"


def test_epochs_that_the_study_knows_are_not_noted_again():
    sweep = spec({"weight_bits": [1]})
    (trial,) = plan(sweep).trials
    study = Study(sweep)
    study.start(trial)
    for epoch in (1, 2, 3):
        study.report(trial.trial_id, epoch, [0.5] * 3)
    assert study.report(trial.trial_id, 2, [0.9] * 3, {1: [0.9] * 3}) is None  # its worker was lost
    study.report(trial.trial_id, 4, [0.5] * 3, {1: [0.9] * 3, 3: [0.9] * 3})
    assert set(study.curves.trials[0].intermediate_values.values()) == {0.5}


@pytest.mark.parametrize(("resumed_at", "twice"), [(0, 2), (1, 1), (2, 0), (5, 0)])
def test_only_epochs_that_are_trained_again_count_as_trained_twice(resumed_at, twice):
    sweep = spec({"weight_bits": [1, 8]}, early_terminate={"type": "pareto", "risk": 0.1})
    small, large = sorted(plan(sweep).trials, key=lambda trial: trial.weight_bits)
    stopped = replace(result(large, "pruned", curve=[0.4, 0.5]), score=None)
    queue: Queue = queue_of(sweep, [result(small), stopped])
    assert queue.next() == large, "with so few results every stopped trial is released"
    queue.ended(result(large), resumed_at)
    assert queue.twice == twice
