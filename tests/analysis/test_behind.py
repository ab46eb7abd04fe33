"""A side that was stopped is behind if none of the most similar finished curves gained what it would need."""

import random

import pyarrow as pa
import pytest

from qdtune.analysis.behind import N_ALIKE, CurveBook
from qdtune.analysis.comparisons import compare_depths
from qdtune.datasets.dataset import DatasetInfo
from qdtune.store.pairs import find_sides
from tests.analysis.test_answers import configuration
from tests.schemas import HISTORY, TRIALS

EPOCHS = 6
INFO = DatasetInfo(60_000, 784, 10)


def sweep(curves, seeds=2, states=None):
    """The tables of configurations (depth, qat_lr) -> a curve; one that is shorter than `EPOCHS` was stopped."""
    rows, history = [], []
    for (depth, rate), curve in curves.items():
        is_stopped = len(curve) < EPOCHS
        made = configuration(depth, 2, [curve[-1]] * seeds, qat_lr=rate)
        for row in made:
            row |= {"state": "pruned", "test_accuracy": None} if is_stopped else {}
            row |= (states or {}).get((depth, rate), {})
        rows += made
        for row in made:
            points = [{"epoch": e, "val_accuracy": value} for e, value in enumerate(curve, 1)]
            history += [{"trial_id": row["trial_id"], "seed": row["seed"], "phase": "qat"} | p for p in points]
    order = random.Random(0)
    order.shuffle(rows)
    order.shuffle(history)
    return pa.Table.from_pylist(rows, schema=TRIALS), pa.Table.from_pylist(history, schema=HISTORY)


def grown(start, end):
    return [start + (end - start) * e / (EPOCHS - 1) for e in range(EPOCHS)]


def finished(count, gain=0.1):
    """Depth 1 at `count` learning rates: from 0.7 to 0.7 + gain."""
    return {(1, 0.01 * (k + 1)): grown(0.7, 0.7 + gain) for k in range(count)}


def asked(curves, **others):
    trials, history = sweep(curves, **others)
    found = compare_depths(find_sides(trials), CurveBook(trials, history, INFO))
    return {one.value: one for one in found}


STOPPED = [0.68, 0.7]


def test_a_side_that_nobody_like_it_could_catch_up_from_is_behind():
    one = asked(finished(10) | {(1, 0.5): grown(0.8, 0.97), (2, 0.5): STOPPED})[2]
    assert (one.verdict, one.behind, one.predicted_from, one.n_like) == ("behind", "depth 2", 2, N_ALIKE)
    assert (one.low, one.p, one.effect) == (None, None, None)
    assert one.sentence == (
        "At 2 bits (absmean, orthogonal, identity), depth 2 is behind depth 1: it was stopped at QAT epoch "
        "2, 13.4 points behind, and none of the 9 finished trainings most like it gained as much as it would need."
    )


def test_the_baseline_may_be_the_one_that_is_behind():
    curves = {(2, 0.01 * (k + 1)): grown(0.7, 0.8) for k in range(10)}
    trials, history = sweep(curves | {(2, 0.5): grown(0.8, 0.97), (1, 0.5): STOPPED})
    (one,) = compare_depths(find_sides(trials), CurveBook(trials, history, INFO))
    assert (one.verdict, one.behind) == ("behind", "depth 1")
    assert "depth 1 is behind depth 2" in one.sentence


@pytest.mark.parametrize("count", [N_ALIKE - 2, N_ALIKE - 1, N_ALIKE])
def test_too_few_finished_curves_decide_nothing(count):
    """The finished side of the pair is none of them."""
    one = asked(finished(count) | {(1, 0.5): grown(0.8, 0.97), (2, 0.5): STOPPED})[2]
    assert one.verdict == ("behind" if count == N_ALIKE else "refused")


def test_one_curve_that_gained_as_much_is_enough_to_refuse():
    late = finished(N_ALIKE - 1) | {(1, 0.3): grown(0.7, 0.98)}
    one = asked(late | {(1, 0.5): grown(0.8, 0.97), (2, 0.5): STOPPED})[2]
    assert (one.verdict, one.obstacle) == ("refused", "pruned")


def test_what_ended_at_chance_is_like_nobody():
    chance = {(1, 0.001 * (k + 1)): [0.1] * EPOCHS for k in range(10)}
    one = asked(chance | finished(N_ALIKE - 1) | {(1, 0.5): grown(0.8, 0.97), (2, 0.5): STOPPED})[2]
    assert one.verdict == "refused"


def test_two_stopped_sides_and_mixed_pairs_are_refused():
    both = finished(10) | {(1, 0.5): [0.8, 0.82, 0.83], (2, 0.5): STOPPED}
    assert asked(both)[2].verdict == "refused"
    mixed = finished(10) | {(1, 0.5): grown(0.8, 0.97), (2, 0.5): STOPPED, (2, 0.01): grown(0.7, 0.8)}
    assert asked(mixed)[2].verdict == "refused"


def test_a_side_that_leads_is_not_behind():
    one = asked(finished(10) | {(1, 0.5): grown(0.6, 0.7), (2, 0.5): [0.68, 0.75]})[2]
    assert one.verdict == "refused"
