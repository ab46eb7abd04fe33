"""A search of a metric that goes down decides as one of the same metric turned upside down."""

import math

import pytest
from optuna.study import StudyDirection

from qdtune.search.queue import Queue
from qdtune.search.simulation import score
from qdtune.search.study import Study
from qdtune.spec.plan import plan
from qdtune.store.results import Result, results
from tests.judged import START, draw_skill, make_spec, write_run

EPOCHS = 4
UP, DOWN = ("r2", lambda skill: skill), ("mse", lambda skill: 2 - skill)
RULES = [
    ("{type: none}", "{type: none}"),
    ("{type: pareto, margin: 0.004, min_epochs: 1, risk: null}",) * 2,
    ("{type: pareto, margin: 0.004, min_epochs: 1, signal: ema}",) * 2,
    ("{type: median, n_startup_trials: 1}",) * 2,
    ("{type: median, scope: all, n_startup_trials: 1}",) * 2,
    ("{type: percentile, scope: all, n_startup_trials: 1}",) * 2,
    ("{type: successive_halving, scope: all}",) * 2,
    ("{type: hyperband, scope: all}",) * 2,
    ("{type: patient, patience: 1, min_delta: 0.2}",) * 2,
    ("{type: threshold, lower: 0.8, n_warmup_steps: 3}", "{type: threshold, lower: 1.2, n_warmup_steps: 3}"),
    ("{type: wilcoxon, scope: all, p_threshold: 0.2}",) * 2,
]


def launch(metric, value_of, *overrides):
    """One launch in which trials take no time; how each trial ended, in order, and the studies."""
    spec = make_spec("regression", metric, ["name=same", *overrides])  # hyperband draws from the name
    queue = Queue(spec, plan(spec).trials, Study(spec), [])
    ended = []
    while (trial := queue.next()) is not None:
        curve, by = {}, None
        for epoch in range(1, EPOCHS + 1):
            curve[epoch] = [value_of(draw_skill(trial, seed, epoch)) for seed in trial.seeds]
            if epoch < EPOCHS and (by := queue.study.report(trial.trial_id, epoch, curve[epoch])):
                break
        mean = math.fsum(curve[epoch]) / len(trial.seeds)
        value = None if by else spec.metric.sign * mean
        seconds = dict.fromkeys(curve, 1.0)
        queue.ended(Result(trial, "pruned" if by else "ok", value, curve, seconds, by, START))
        ended.append((trial.label, trial.seeds, len(curve), bool(by)))
    return ended, queue.study


@pytest.mark.parametrize(("up", "down"), RULES, ids=[up for up, _ in RULES])
def test_every_pruner_stops_the_same_trials(up, down):
    (first, _), (second, _) = launch(*UP, f"early_terminate={up}"), launch(*DOWN, f"early_terminate={down}")
    assert first == second
    stopped = [one for one in first if one[-1]]
    # Every curve gets better, so that patience ends only where better is taken for worse.
    assert bool(stopped) == ("none" not in up and "patient" not in up)
    assert len(stopped) < len(first)


def test_the_same_configurations_get_more_seeds():
    more = "replicate={front: 6, within: 0.01}"
    (first, _), (second, _) = launch(*UP, more), launch(*DOWN, more)
    assert first == second
    assert {len(seeds) for _, seeds, *_ in first} == {4, 2}


def test_the_studies_hold_the_metric_and_its_direction():
    _, study = launch(*DOWN)
    assert study.search.directions == [StudyDirection.MINIMIZE, StudyDirection.MINIMIZE]
    assert study.search.metric_names == ["val_mse", "size_bytes"]
    assert (study.curves.direction, study.curves.metric_names) == (StudyDirection.MINIMIZE, ["val_mse"])
    assert 1 < study.curves.best_value < 2
    assert all(1 < trial.values[0] < 2 for trial in study.search.trials)
    _, other = launch(*UP)
    fronts = [sorted(trial.number for trial in one.search.best_trials) for one in (study, other)]
    assert fronts[0] == fronts[1]


def test_earlier_results_are_restored_as_they_were_told(tmp_path):
    _, told = launch(*DOWN)
    spec = make_spec("regression", "mse")
    store = write_run(tmp_path / "run", spec, DOWN[1])
    study = Study(spec)
    study.restore(results(spec, store.trials(), store.history()))
    values = [
        {trial.user_attrs["trial_id"]: trial.values for trial in one.trials} for one in (told.search, study.search)
    ]
    assert values[0].keys() == values[1].keys()
    assert all(values[0][trial_id] == pytest.approx(values[1][trial_id]) for trial_id in values[0])
    assert study.curves.best_value == pytest.approx(told.curves.best_value)


@pytest.mark.parametrize("metric", ["r2", "mse"])
def test_a_replay_scores_any_metric(tmp_path, metric):
    value_of = dict((UP, DOWN))[metric]
    store = write_run(tmp_path / "run", make_spec("regression", metric), value_of)
    rule = "early_terminate={type: pareto, margin: 0.004, min_epochs: 1, risk: null}"
    spec = make_spec("regression", metric, [rule])
    found = score(spec, results(spec, store.trials(), store.history()), 2, range(3))
    assert found.lost == [0, 0, 0]
    assert found.kept == [1, 1, 1]
    assert min(found.saved) > 0


def test_a_replay_of_negative_r2_counts_what_a_pruner_loses(tmp_path):
    found = []
    for metric, value_of in (("r2", lambda skill: skill - 3), ("mse", lambda skill: 3 - skill)):
        store = write_run(tmp_path / metric, make_spec("regression", metric), value_of)
        rule = "early_terminate={type: percentile, percentile: 25, scope: all, n_startup_trials: 1}"
        spec = make_spec("regression", metric, ["name=same", rule])
        read = make_spec("regression", metric)
        found.append(score(spec, results(read, store.trials(), store.history()), 2, range(3)))
    assert min(found[0].lost) > 0
    assert max(found[0].kept) < 1
    assert found[0].kept == pytest.approx(found[1].kept)
