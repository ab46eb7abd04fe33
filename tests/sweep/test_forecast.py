"""How long a dry run says that a sweep takes: by arithmetic, from times that are given or measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdtune.datasets.load import load as load_data
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.sweep.forecast import (
    MAX_SAMPLES,
    START_S,
    WARMUP_SHARE,
    Timed,
    choose_samples,
    cost_of,
    forecast_time,
    format_span,
    measure_times,
)
from qdtune.sweep.placement import Placement

SWEEP = b"""
version: 1
name: timed
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 2, 4]}, hidden: {values: [8, 16]}}
seeds: [0, 1]
data: {dataset: digits, val_size: 300}
train: {batch_size: 32, warmup: {epochs: 2}, qat: {epochs: 10}}
run: {compile: never}
"""


def make_spec(**changes: Any) -> Spec:
    return loads(SWEEP, "timed.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def place(at_once: int) -> Placement:
    return Placement(0.0, 1.0, 0, at_once, ())


def predict(spec: Spec, at_once: int = 2, qat_s: float = 3.0, overhead_s: float = 0.5) -> tuple[float, float]:
    """The seconds, if an epoch of each configuration takes `qat_s`, whatever it costs."""
    planned = plan(spec)
    timed = [Timed(trial, qat_s, overhead_s) for trial in planned.trials]
    found = forecast_time(spec, planned, planned.trials, len(planned.trials), place(at_once), timed)
    return found.least_s - START_S, found.most_s - START_S


WARM = 4 * 2 * 3.0 * WARMUP_SHARE  # two depths, two widths
WHOLE = 12 * (10 * 3.0 + 0.5)


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({}, WHOLE, WHOLE),
        ({"early_terminate": {"type": "pareto", "min_epochs": 3}}, 12 * (3 * 3.0 + 0.5), WHOLE),
        ({"replicate": {"until": "decided", "looks": [2, 4, 6]}}, WHOLE, 3 * WHOLE + 2 * WARM),
        ({"replicate": {"until": "decided", "looks": [2, 4, 6], "budget": 8}}, WHOLE, WHOLE + 4 * (30 + 0.5)),
        ({"replicate": {"until": "decided", "budget": {"seconds": 60}}}, WHOLE, WHOLE + 60),
        ({"replicate": {"front": 5}}, WHOLE + 2 * (30 + 0.5), 3 * WHOLE + 2 * WARM),
    ],
)
def test_a_forecast_is_trainings_times_epochs_by_trials_at_a_time(
    changes: dict[str, Any], least: float, most: float
) -> None:
    for at_once in (1, 2, 4):
        found = predict(make_spec(**changes), at_once)
        assert found == pytest.approx(((least + WARM) / at_once, (most + WARM) / at_once))


def test_the_sample_of_a_search_stands_for_what_it_still_tries() -> None:
    spec = make_spec(method="random", run_cap=6)
    planned = plan(spec)
    timed = [Timed(trial, 3.0, 0.5) for trial in planned.trials]
    seconds = [forecast_time(spec, planned, planned.trials, n, place(1), timed).most_s - START_S for n in (2, 4, 6)]
    assert seconds == pytest.approx([seconds[2] / 3, seconds[2] * 2 / 3, seconds[2]])


def test_a_forecast_is_at_least_as_long_as_the_longest_training() -> None:
    assert predict(make_spec(), at_once=12)[1] == pytest.approx(max(10 * 3.0, (WHOLE + WARM) / 12))


def test_configurations_between_those_that_are_timed_lie_between_them() -> None:
    spec = make_spec()
    planned = plan(spec)
    cheap, dear = min(planned.trials, key=cost_of), max(planned.trials, key=cost_of)
    assert cost_of(cheap) < cost_of(dear)
    low, high = (
        forecast_time(
            spec, planned, planned.trials, len(planned.trials), place(1), [Timed(cheap, s, 0), Timed(dear, s, 0)]
        ).most_s
        for s in (1.0, 3.0)
    )
    both = forecast_time(
        spec, planned, planned.trials, len(planned.trials), place(1), [Timed(cheap, 1.0, 0), Timed(dear, 3.0, 0)]
    )
    assert low < both.most_s < high


def test_samples_are_few_different_and_spread_over_the_costs() -> None:
    trials = plan(make_spec()).trials
    chosen = choose_samples(trials)
    costs = [cost_of(trial) for trial in chosen]
    assert len({trial.trial_id for trial in chosen}) == MAX_SAMPLES
    assert {max(costs), min(costs)} == {max(map(cost_of, trials)), min(map(cost_of, trials))} == set(costs[:2])
    assert choose_samples(trials[:1]) == trials[:1]


@pytest.mark.parametrize(
    ("least", "most", "text"),
    [
        (240, 360, "about 4 to 6 minutes"),
        (300, 300, "about 5 minutes"),
        (20, 50, "about 20 to 50 seconds"),
        (60, 150, "about 1 to 2.5 minutes"),
        (3_600, 7_300, "about 1 to 2 hours"),
        (86_400 * 3, 86_400 * 3, "about 3 days"),
        (0.2, 0.4, "about 0.5 seconds"),
    ],
)
def test_spans_are_said_in_words(least: float, most: float, text: str) -> None:
    assert format_span(least, most) == text


def test_a_measurement_trains_the_configurations_for_a_few_steps(tmp_path: Path) -> None:
    spec, told = make_spec(), []
    data, _ = load_data(("digits",), tmp_path, 300)
    samples = choose_samples(plan(spec).trials)[:2]
    found = measure_times(spec, samples, data, place(1), told.append)
    assert [one.trial for one in found] == told == samples
    assert all(0 < one.qat_s < 60 and 0 < one.overhead_s < 60 and one.compile_s == 0 for one in found)
