"""Rows and histories of a run folder come back as the trials they were."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.results import Result, SeedEnd, mean, result_of, results
from qdtune.store.store import Store

START = datetime(2030, 1, 2, tzinfo=timezone.utc)
BITS = [1, 2, 4, 8]


def spec(**given: Any) -> Spec:
    data = {
        "version": 1,
        "name": "a",
        "parameters": {
            "weight_bits": {"values": BITS},
            "act_bits": {"values": [None, 4]},
            "hidden": {"value": [8, 4]},
        },
        "data": {"dataset": "digits", "val_size": 100},
        "run": {"order": "as_listed"},
    }
    return Spec.model_validate(data | given)


def rows_of(
    trial: Configuration, accuracies: list[float | None], minutes: int = 0, **changes: Any
) -> list[dict[str, Any]]:
    finished = START + timedelta(minutes=minutes)
    return [
        trial.columns
        | {"seed": seed, "state": "diverged" if a is None else "ok", "val_accuracy": a, "finished_at": finished}
        | changes
        for seed, a in zip(trial.seeds, accuracies, strict=True)
    ]


def history_of(trial: Configuration, curves: list[list[float | None]], phase: str = "qat") -> list[dict[str, Any]]:
    """One row per seed and epoch; a seed has none after the epoch in which it diverged."""
    rows = []
    for seed, curve in zip(trial.seeds, curves, strict=True):
        for epoch, accuracy in enumerate(curve, 1):
            entry = {"trial_id": trial.trial_id, "seed": seed, "phase": phase, "epoch": epoch, "seconds": 0.25}
            rows.append(entry | {"val_accuracy": accuracy, "train_loss": None if accuracy is None else 0.1})
            if accuracy is None:
                break
    return rows


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


def save(store: Store, trial: Configuration, rows: list[dict[str, Any]], history: list[dict[str, Any]]) -> None:
    assert store.write(trial.trial_id, rows, history, {})


def read(store: Store, sweep: Spec) -> list[Result]:
    return results(sweep, store.trials(), store.history())


def test_a_trial_of_several_seeds_comes_back_whole(store):
    trial = plan(spec(seeds=[7, 3, 5])).trials[3]
    warmup = history_of(trial, [[0.1, 0.2]] * 3, "warmup")
    qat = history_of(trial, [[0.5, 0.75], [0.25, 0.5], [0.75, 1.0]])
    save(store, trial, rows_of(trial, [0.75, 0.5, 1.0]), warmup + qat)
    ends = tuple(SeedEnd(seed, "ok", value) for seed, value in zip(trial.seeds, [0.75, 0.5, 1.0], strict=True))
    curve = {1: [0.5, 0.25, 0.75], 2: [0.75, 0.5, 1.0]}
    assert read(store, spec(seeds=[7, 3, 5])) == [
        Result(trial, "ok", 0.75, curve, {1: 0.75, 2: 0.75}, None, START, ends)
    ]


def test_a_seed_that_diverged_has_no_accuracy_from_there_on(store):
    trial = plan(spec()).trials[0]
    save(store, trial, rows_of(trial, [0.5, None, 0.7]), history_of(trial, [[0.5] * 3, [0.4, None, 0.0], [0.7] * 3]))
    (found,) = read(store, spec())
    assert (found.state, found.score) == ("diverged", None)
    assert found.curve == {1: [0.5, 0.4, 0.7], 2: [0.5, None, 0.7], 3: [0.5, None, 0.7]}
    assert found.seconds == {1: 0.75, 2: 0.75, 3: 0.5}
    assert found.scores[-1] == mean([0.5, 0.4, 0.7])


def test_a_pruned_trial_says_who_beat_it_and_has_no_accuracy(store):
    trial = plan(spec()).trials[0]
    pruned = rows_of(trial, [0.5, 0.6, 0.7], state="pruned", pruned_by="0123456789ab")
    save(store, trial, pruned, history_of(trial, [[0.5, 0.4]] * 3))
    (found,) = read(store, spec())
    assert (found.state, found.score, found.pruned_by) == ("pruned", None, "0123456789ab")
    assert (found.curve, found.scores[-1]) == ({1: [0.5] * 3, 2: [0.4] * 3}, 0.5)


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        (["ok", "pruned", "ok"], "pruned"),
        (["diverged", "pruned", "ok"], "diverged"),
        (["ok", "failed", "diverged"], "failed"),
        (["timeout", "oom", "timeout"], "oom"),
    ],
)
def test_the_state_is_the_worst_of_the_seeds(states, worst):
    trial = plan(spec()).trials[0]
    rows = [row | {"state": state} for row, state in zip(rows_of(trial, [0.5] * 3), states, strict=True)]
    found = result_of(trial, rows, [])
    assert (found.state, found.score) == (worst, None)


def test_rows_without_a_history_have_an_empty_curve(store):
    trial = plan(spec()).trials[0]
    save(store, trial, rows_of(trial, [0.5, 0.6, 0.7]), [])
    (found,) = read(store, spec())
    assert (found.curve, found.seconds, found.score) == ({}, {}, mean([0.5, 0.6, 0.7]))
    assert found.scores == ()


def test_rows_without_a_time_count_as_the_oldest():
    early, late = plan(spec()).trials[:2]
    assert (
        result_of(early, rows_of(early, [0.5] * 3, finished_at=None), []).finished_at
        < result_of(late, rows_of(late, [0.5] * 3), []).finished_at
    )


def test_results_come_in_the_order_of_their_ends_whatever_the_order_of_the_rows(store):
    trials = plan(spec()).trials
    chance = random.Random(0)
    times = {trial.trial_id: minute for minute, trial in enumerate(chance.sample(trials, len(trials)))}
    for trial in trials:
        curves = [[chance.random() for _ in range(3)] for _ in trial.seeds]
        save(store, trial, rows_of(trial, [0.5] * 3, times[trial.trial_id]), history_of(trial, curves))
    expected = read(store, spec())
    assert [times[r.trial.trial_id] for r in expected] == list(range(len(trials)))
    table, history = store.trials(), store.history()
    for _ in range(3):
        blocks = chance.sample(trials, len(trials))
        rows = [i for t in blocks for i, name in enumerate(table["trial_id"].to_pylist()) if name == t.trial_id]
        entries = chance.sample(range(history.num_rows), history.num_rows)
        found = results(spec(), table.take(rows), history.take(entries))
        assert found == expected
        assert {tuple(r.curve) for r in found} == {(1, 2, 3)}  # in this order


def test_rows_that_another_sweep_made_are_left_out(store):
    sweep = spec(exclude=[{"weight_bits": 2, "act_bits": 4}], constraints=["weight_bits <= 4"])
    own = {trial.trial_id for trial in plan(sweep).trials}
    for trial in plan(spec()).trials:
        save(store, trial, rows_of(trial, [0.5] * 3), [])
    assert {r.trial.trial_id for r in read(store, sweep)} == own
    assert 0 < len(own) < len(plan(spec()).trials)
    assert read(store, spec(parameters={"weight_bits": {"value": 16}})) == []
    assert read(store, spec(train={"batch_size": 32})) == []  # trained by other rules
    assert read(store, spec(model={"hidden": [8, 4], "batch_norm": True})) == []


def test_rows_of_further_seeds_are_a_result_of_their_own(store):
    trial = plan(spec()).trials[0]
    more = replace(trial, seeds=(3, 4))
    save(store, trial, rows_of(trial, [0.5] * 3), [])
    save(store, more, rows_of(more, [0.6] * 2, minutes=1), history_of(more, [[0.6], [0.6]]))
    assert [(r.trial, r.score) for r in read(store, spec())] == [(trial, 0.5), (more, 0.6)]


def test_a_value_within_a_range_belongs_to_the_sweep(store):
    def ranged(low: float, high: float) -> Spec:
        rate = {"min": low, "max": high, "distribution": "log_uniform"}
        return spec(parameters={"qat_lr": rate}, method="random", run_cap=3)

    for trial in plan(ranged(0.001, 0.1)).trials:
        save(store, trial, rows_of(trial, [0.5] * 3), [])
    assert len(read(store, ranged(0.0001, 1.0))) == 3
    assert read(store, ranged(0.5, 1.0)) == []


@given(st.lists(st.sampled_from([None, 0.1, 0.2, 0.3, 0.7]), max_size=5), st.randoms(use_true_random=False))
def test_mean_is_the_same_in_any_order_and_nan_where_a_seed_has_none(accuracies, chance):
    shuffled = chance.sample(accuracies, len(accuracies))
    if not accuracies or None in accuracies:
        assert math.isnan(mean(accuracies))
    else:
        assert mean(accuracies) == mean(shuffled)
        assert mean(accuracies) == pytest.approx(sum(accuracies) / len(accuracies), abs=1e-12)


def test_the_order_of_the_seeds_of_a_trial_does_not_matter(store):
    trial = plan(spec()).trials[0]
    save(store, trial, rows_of(trial, [0.5, 0.6, 0.7])[::-1], history_of(trial, [[0.5], [0.6], [0.7]]))
    assert [r.trial for r in read(store, spec())] == [trial]
