"""Simulated sweeps over recorded curves, some of them counted by hand."""

from __future__ import annotations

import random
from datetime import datetime, timezone
from typing import Any

import pytest

from qdtune.pareto import front
from qdtune.search.simulation import score, simulate
from qdtune.spec.choices import ORDERS
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.results import Result

NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)
SMALL, MIDDLE, LARGE = 0, 1, 2
CURVES = [[0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.5, 0.5], [0.3, 0.65, 0.8, 0.9]]


def spec(bits: list[int], kind: str = "pareto", **options: Any) -> Spec:
    return Spec.model_validate(
        {
            "version": 1,
            "name": "a",
            "parameters": {"weight_bits": {"values": bits}, "activation": {"values": ["identity", "relu"]}},
            "exclude": [{"activation": "relu"}] if len(bits) == 3 else [],
            "data": {"dataset": "digits", "val_size": 100},
            "train": {"qat": {"epochs": 4}},
            "early_terminate": {"type": kind, **({"risk": None} if kind == "pareto" else {}), **options},
        }
    )


def recorded(trial: Configuration, curve: list[float | None], seconds: float = 1.0) -> Result:
    """A trial whose seeds all had this curve, each epoch as long; diverged where it ends in None."""
    seen = {epoch: [a] * len(trial.seeds) for epoch, a in enumerate(curve, 1)}
    state = "ok" if curve[-1] is not None else "diverged"
    return Result(trial, state, curve[-1], seen, dict.fromkeys(seen, seconds), None, NOW)


def three(
    order: list[int], at_once: int, curves: Any = CURVES, seconds: Any = (1.0, 1.0, 1.0)
) -> tuple[int, set[int]]:
    """Epochs trained, and which were finished, of three trials of rising size that arrive in this order."""
    sweep = spec([1, 4, 8])
    trials = plan(sweep).trials
    results = {t.trial_id: recorded(t, c, s) for t, c, s in zip(trials, curves, seconds, strict=True)}
    epochs, _, ends = simulate(sweep, results, [trials[i] for i in order], at_once, random.Random(0))
    finished = {trial_id for trial_id, result in ends.items() if result.state != "pruned"}
    return epochs, {i for i, trial in enumerate(trials) if trial.trial_id in finished}


@pytest.fixture
def even(monkeypatch):
    """No noise in the time of an epoch."""
    monkeypatch.setattr("qdtune.search.simulation.NOISE", 0.0)


# --- by hand: the middle one is behind the small one from epoch 2 on, the large one is ahead from epoch 2 on


def test_one_at_a_time_the_middle_one_is_stopped_after_two_epochs():
    assert three([SMALL, MIDDLE, LARGE], 1) == (4 + 2 + 4, {SMALL, LARGE})
    assert three([SMALL, LARGE, MIDDLE], 1) == (4 + 4 + 2, {SMALL, LARGE})


def test_who_comes_before_the_small_one_is_trained_to_its_end():
    assert three([LARGE, MIDDLE, SMALL], 1) == (12, {SMALL, MIDDLE, LARGE})


def test_who_is_ahead_of_the_small_one_in_time_is_not_stopped(even):
    assert three([SMALL, MIDDLE, LARGE], 2, seconds=(10, 1, 1)) == (12, {SMALL, MIDDLE, LARGE})
    assert three([SMALL, MIDDLE, LARGE], 2, seconds=(1, 10, 1)) == (10, {SMALL, LARGE})
    assert three([SMALL, MIDDLE, LARGE], 2) == (10, {SMALL, LARGE})  # epochs end together: who came first is first


def test_released_trials_save_more_if_they_go_on_where_they_were_stopped():
    """With so few results the middle one is released: trained again it takes 2 epochs more than without a pruner."""
    sweep = spec([1, 4, 8], "pareto", risk=0.1)
    results = [recorded(t, c) for t, c in zip(plan(sweep).trials, CURVES, strict=True)]
    found = score(sweep, results, 1, range(2), "small_first")
    assert found.saved == pytest.approx([-2 / 12] * 2)
    assert found.resumed == pytest.approx([0] * 2)


def test_score_of_the_three_is_as_counted():
    sweep = spec([1, 4, 8])
    results = [recorded(t, c) for t, c in zip(plan(sweep).trials, CURVES, strict=True)]
    random.Random(0).shuffle(results)
    found = score(sweep, results, 1, range(4), "small_first")
    assert found.saved == found.resumed == pytest.approx([2 / 12] * 4)
    assert (found.lost, found.kept) == ([0] * 4, [1.0] * 4)
    assert score(sweep, results, 1, [0], "large_first").saved == [0.0]


# --- over random curves


def crossing(seed: int) -> list[Result]:
    """Curves in which large ones are slow at first, in shuffled order."""
    chance = random.Random(seed)
    found = []
    for trial in plan(spec([1, 2, 3, 4, 6, 8, 12, 16])).trials:
        top = min(0.98, 0.2 + 0.05 * trial.weight_bits + 0.3 * chance.random())
        slow = chance.uniform(0.2, 1.5) * trial.weight_bits / 8
        curve: list[float | None] = [round(top * epoch / (epoch + slow), 3) for epoch in range(1, 5)]
        found.append(recorded(trial, curve, chance.uniform(0.5, 2)))
    return chance.sample(found, len(found))


@pytest.mark.parametrize("order", ORDERS)
def test_without_a_rule_nothing_is_saved_and_nothing_lost(order):
    found = score(spec([1, 2, 3, 4, 6, 8, 12, 16], "none"), crossing(0), 3, range(3), order)
    assert (found.saved, found.lost, found.kept) == ([0.0] * 3, [0] * 3, [1.0] * 3)


RULES = [("pareto", {"margin": 0.0}), ("median", {"scope": "all"}), ("successive_halving", {"scope": "size"})]


@pytest.mark.parametrize(("kind", "options"), RULES, ids=[kind for kind, _ in RULES])
def test_what_is_kept_is_whole_where_no_front_member_is_lost(kind, options):
    sweep = spec([1, 2, 3, 4, 6, 8, 12, 16], kind, **options)
    for seed in range(3):
        results = crossing(seed)
        found = score(sweep, results, 3, range(6))
        costs = [(-r.score, r.trial.sizes.size_bytes) for r in results]
        assert len(found.saved) == len(found.lost) == len(found.kept) == 6
        for saved, lost, kept in zip(found.saved, found.lost, found.kept, strict=True):
            assert saved < 1
            assert 0 <= lost <= front(costs).sum()
            assert kept == 1 if lost == 0 else 0 <= kept < 1
        assert any(found.saved), "the test sees no stop"


def test_a_rule_that_knows_no_sizes_loses_front_members():
    found = score(spec([1, 2, 3, 4, 6, 8, 12, 16], "median", scope="all"), crossing(1), 1, range(6))
    assert sum(found.lost) > 0


def test_score_depends_on_the_seeds_alone():
    sweep = spec([1, 2, 3, 4, 6, 8, 12, 16])
    results = crossing(2)
    both = score(sweep, results, 3, [5, 6])
    assert score(sweep, results, 3, [5, 6]) == both
    assert score(sweep, results, 3, [6]).saved == both.saved[1:]
    assert len(set(score(sweep, results, 3, range(8)).saved)) > 1


def test_a_replicated_sweep_is_simulated_without_its_replicates():
    sweep = spec([1, 4, 8], "none").model_copy(update={"method": "tpe", "run_cap": 3})
    results = [recorded(t, c) for t, c in zip(plan(spec([1, 4, 8])).trials, CURVES, strict=True)]
    found = score(sweep, results, 2, [0])
    assert (found.saved, found.lost, found.kept) == ([0.0], [0], [1.0])


def test_a_trial_without_a_curve_costs_nothing():
    sweep = spec([1, 4, 8])
    *results, last = [recorded(t, c) for t, c in zip(plan(sweep).trials, CURVES, strict=True)]
    results.append(Result(last.trial, "diverged", None, {}, {}, None, NOW))
    assert score(sweep, results, 1, [0], "small_first").saved == [pytest.approx(2 / 8)]


def test_a_sweep_that_never_beat_chance_has_a_score():
    sweep = spec([1, 4, 8], "none")
    results = [recorded(t, [0.05] * 4) for t in plan(sweep).trials]
    assert score(sweep, results, 1, [0]).kept == [1.0]


def test_who_was_stopped_by_a_trial_that_diverged_is_trained_again(even):
    curves = [[0.5, 0.6, None], *CURVES[1:]]
    # Three epochs of the small one, two of the middle one, then all four of it; it is behind nobody else.
    assert three([SMALL, MIDDLE, LARGE], 2, curves) == (3 + 2 + 4 + 4, {SMALL, MIDDLE, LARGE})


@pytest.mark.parametrize("costs", ["size_bytes", "macs", "size_bytes macs", "macs activation_bytes size_bytes"])
def test_the_front_of_a_replay_is_over_the_costs_of_the_file(costs):
    """A wide network of few bits and a narrow one of many: the costs say which of the two may stop the other."""
    sweep = Spec.model_validate(
        spec([1]).to_dict()
        | {"exclude": [], "objectives": ["val_accuracy", *costs.split()]}
        | {"parameters": {"weight_bits": {"values": [1, 8]}, "hidden": {"values": [[8], [24]]}}}
    )
    trials = {(trial.hidden, trial.weight_bits): trial for trial in plan(sweep).trials}
    narrow, wide = trials[(8,), 8], trials[(24,), 1]
    assert narrow.sizes.size_bytes > wide.sizes.size_bytes
    good, bad = [0.6, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.3]
    for better, worse in ((wide, narrow), (narrow, wide)):
        found = score(sweep, [recorded(better, good), recorded(worse, bad)], 1, range(4))
        may_stop = all(better is (wide if cost == "size_bytes" else narrow) for cost in costs.split())
        assert (max(found.saved) > 0) is may_stop
        assert (found.lost, found.kept) == ([0] * 4, pytest.approx([1.0] * 4))
