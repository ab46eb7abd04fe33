"""What is left of a sweep: the queue that trains it and a run that is read agree, whatever rows are stored."""

from __future__ import annotations

import math
import random
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdtune.analysis.run import Run
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import COSTS
from qdtune.spec.plan import make_trial, plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.cohorts import find_stored_cohorts
from qdtune.store.columns import FINAL, STATES
from qdtune.store.pareto_table import aggregate
from qdtune.store.parquet import to_table
from qdtune.store.results import results
from qdtune.store.unfinished import Unfinished, find_unfinished
from tests.schemas import HISTORY, TRIALS

NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)
EPOCHS = 3
SEEDS = (0, 1)
# Few of them, so that they tie; a configuration that is stopped can be as good as one that is finished.
ACCURACIES = [0.5, 0.6, 0.7, math.nan, None]
Rows = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def spec(method: str = "grid", pruner: Any = None, replicate: Any = None, objectives: Any = None) -> Spec:
    return Spec.model_validate(
        {
            "version": 1,
            "name": "a",
            "method": method,
            "run_cap": None if method == "grid" else 5,
            "parameters": {"depth": {"values": [1, 2]}, "weight_bits": {"values": [1, 4, 8]}},
            "seeds": list(SEEDS),
            "data": {"dataset": "digits", "val_size": 100},
            "train": {"qat": {"epochs": EPOCHS}},
            "early_terminate": pruner or {"type": "pareto", "risk": None},
            "replicate": replicate,
            "objectives": objectives,
        }
    )


SPECS = [
    spec(method, pruner, replicate, objectives)
    for objectives in (None, ["val_accuracy", "macs"], ["val_accuracy", "macs", "size_bytes"])
    for method in ("grid", "tpe")
    for pruner in ({"type": "pareto", "risk": None}, {"type": "none"}, {"type": "median", "scope": "all"})
    for replicate in (
        None,
        {"front": 5, "within": 0.0},
        {"front": 5, "within": 0.1},
        {"until": "decided", "looks": [2, 4, 6]},
        {"until": "decided", "looks": [2, 4], "questions": ["depth", "front"], "budget": 6},
    )
]


@st.composite
def cohort(draw: st.DrawFn, trial: Configuration, any_end: bool) -> Rows:
    """The rows of one cohort; of its seeds one may have diverged alone."""
    state = draw(st.sampled_from([*STATES, "ok", "ok", "pruned", "pruned"]))
    values = st.sampled_from(ACCURACIES[:3] if draw(st.booleans()) else ACCURACIES)
    ends = values if any_end or state != "ok" else st.sampled_from(ACCURACIES[:3])
    rows = [trial.columns | {"seed": s, "state": state, "val_accuracy": draw(ends)} for s in trial.seeds]
    if state in ("diverged", "ok") and draw(st.integers(0, 5)) == 0:
        rows[0] |= {"state": "diverged", "val_accuracy": None}
    history = [
        {"trial_id": trial.trial_id, "seed": s, "phase": phase, "epoch": e, "val_accuracy": draw(values)}
        for phase in ("warmup", "qat")
        for e in range(1, draw(st.integers(0, EPOCHS)) + 1)
        for s in trial.seeds
        if draw(st.integers(0, 9))  # what has diverged has no further epochs
    ]
    return [row | {"finished_at": NOW} for row in rows], history


@st.composite
def stored(draw: st.DrawFn, any_end: bool = False) -> tuple[Spec, Any, Any]:
    """A sweep, and the tables of a run folder of it: any configurations, up to three cohorts each, in any order.

    Args:
        any_end: whether a seed that ended `ok` may lack a number, which no trainer writes and no study takes.
    """
    sweep = draw(st.sampled_from(SPECS))
    rows: list[dict[str, Any]] = []
    history: list[dict[str, Any]] = []
    for trial in draw(st.lists(st.sampled_from(plan(sweep).trials), unique_by=lambda t: t.key, max_size=6)):
        for seeds in draw(st.lists(st.sampled_from([SEEDS, (2, 3), (4,)]), unique=True, min_size=1)):
            one, curves = draw(cohort(make_trial(sweep, trial.cells, seeds), any_end))
            rows += one
            history += curves
    shuffled = random.Random(draw(st.integers(0, 99)))
    return (
        sweep,
        to_table(shuffled.sample(rows, len(rows)), TRIALS, {}),
        to_table(shuffled.sample(history, len(history)), HISTORY, {}),
    )


def reader_of(sweep: Spec, trials: Any, history: Any) -> Run:
    listed = frozenset(trial.key for trial in plan(sweep).trials) if sweep.method == "grid" else None
    planned = sweep.run_cap or 6
    return Run("a", "a", sweep, trials, history, aggregate(trials, costs=sweep.costs), (), planned, listed=listed)


def queue_of(sweep: Spec, trials: Any, history: Any) -> Queue:
    return Queue(sweep, plan(sweep).trials, Study(sweep), results(sweep, trials, history))


@settings(max_examples=60, deadline=None)
@given(stored())
def test_the_queue_and_a_run_that_is_read_leave_the_same_number(tables: tuple[Spec, Any, Any]) -> None:
    run, queue = reader_of(*tables), queue_of(*tables)
    waiting = {trial.key for trial in queue.waiting}
    unasked = queue.left - len(queue.waiting)
    later = {trial.key for trial in (*queue._released(), *queue._replicates())}
    assert run.left == len(waiting | later) + unasked
    assert (run.left == 0) == (not waiting and not later and not unasked)
    if not waiting and not unasked:
        assert queue.more() == (run.left > 0)
        again = {trial.key for trial in queue.waiting}
        assert again <= later
        assert bool(again) == bool(later)
    if tables[1].num_rows == 0:
        assert run.left == run.planned


@settings(max_examples=60, deadline=None)
@given(stored(any_end=True))
def test_rows_and_results_are_the_same_cohorts(tables: tuple[Spec, Any, Any]) -> None:
    sweep, trials, history = tables
    found = {(one.key, one.seeds): one for one in find_stored_cohorts(trials, history)}
    same = {(one.key, one.seeds): one for one in results(sweep, trials, history)}
    assert found.keys() == same.keys()
    for name, one in found.items():
        other = same[name]
        assert [one.value_of(cost) for cost in COSTS] == [other.value_of(cost) for cost in COSTS]
        assert one.state == other.state
        assert one.score == pytest.approx(other.score, abs=0, nan_ok=True)
        assert one.scores == other.scores
        assert set(map(repr, one.ends)) == set(map(repr, other.ends))


# --- by hand


def rows_of(trial: Configuration, state: str, accuracy: float | None, curve: list[float | None] = []) -> Rows:  # noqa: B006
    rows = [
        trial.columns | {"seed": s, "state": state, "val_accuracy": accuracy, "finished_at": NOW} for s in trial.seeds
    ]
    history = [
        {"trial_id": trial.trial_id, "seed": s, "phase": "qat", "epoch": e, "val_accuracy": a}
        for e, a in enumerate(curve, 1)
        for s in trial.seeds
    ]
    return rows, history


def left_of(sweep: Spec, *cohorts: Rows) -> Unfinished:
    trials = to_table([row for rows, _ in cohorts for row in rows], TRIALS, {})
    history = to_table([entry for _, entries in cohorts for entry in entries], HISTORY, {})
    listed = {trial.key for trial in plan(sweep).trials} if sweep.method == "grid" else None
    return find_unfinished(sweep, find_stored_cohorts(trials, history), listed, sweep.run_cap or 0)


def test_a_stopped_trial_is_left_if_nothing_finished_of_its_size_beats_it():
    sweep = spec()
    small, large = sorted(plan(sweep).trials, key=lambda trial: trial.sizes.size_bytes)[
        :: len(plan(sweep).trials) - 1
    ]
    assert small.sizes.size_bytes < large.sizes.size_bytes
    beaten, ahead = rows_of(large, "pruned", 0.6, [0.6, 0.7]), rows_of(large, "pruned", 0.6, [0.7, 0.75])
    best = rows_of(small, "ok", 0.7)
    assert left_of(sweep, best, beaten).to_release == set()  # a tie is no reason
    assert left_of(sweep, best, ahead).to_release == {large.key}
    smaller = rows_of(small, "pruned", 0.1, [0.1])
    assert left_of(sweep, rows_of(large, "ok", 0.9), smaller).to_release == {small.key}  # it is larger


def test_a_configuration_counts_once_whatever_is_left_of_it():
    """The rows of its first seeds are damaged, those of later seeds are there: it waits, and lacks seeds."""
    sweep = spec(replicate={"front": 5, "within": 0.0})
    trial = plan(sweep).trials[0]
    later = rows_of(make_trial(sweep, trial.cells, (2, 3)), "ok", 0.7)
    found = left_of(sweep, later)
    assert found.waiting == {one.key for one in plan(sweep).trials}
    assert found.to_replicate == {trial.key}
    assert found.count == len(plan(sweep).trials)


@pytest.mark.parametrize("state", STATES)
def test_a_search_goes_on_with_what_it_began_and_what_it_has_not_proposed(state):
    sweep = spec("tpe")
    found = left_of(sweep, rows_of(plan(sweep).trials[0], state, 0.7, [0.7]))
    assert found.unasked == 4
    assert len(found.waiting) == (state not in FINAL)
