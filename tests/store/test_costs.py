"""Fronts over several costs in the tables of a run folder, against their definition; ties, null, any order."""

from __future__ import annotations

import math
import random
from itertools import product
from typing import Any

import pyarrow as pa
import pytest

from qdtune.spec.objectives import ACTIVATION_BYTES, COSTS, MACS, SIZE_BYTES
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import ACCURACY
from qdtune.store.cohorts import Finished, StoredCohort, best_up_to, find_finished
from qdtune.store.columns import costs_in
from qdtune.store.front import front_cells, front_title
from qdtune.store.pairs import find_sides
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.parquet import to_table
from qdtune.store.questions import list_near_ties
from qdtune.store.releases import find_to_release
from qdtune.store.results import fill_costs
from qdtune.store.tables import rows_up_to
from tests.schemas import TRIALS
from tests.store.test_store import row

CHOICES = [(MACS,), (SIZE_BYTES, MACS), (ACTIVATION_BYTES, SIZE_BYTES, MACS)]


def draw_rows(chance: random.Random, seeds: int = 2) -> list[dict[str, Any]]:
    """Configurations with few different costs and accuracies, some stopped, some without a number."""
    rows = []
    for k, (depth, bits) in enumerate(product(range(1, 6), (1, 2, 3, 4))):
        costs = {cost.name: chance.choice([100, 200, 300]) for cost in COSTS}
        state = chance.choice(["ok"] * 8 + ["pruned"])
        best = chance.choice([0.5, 0.6, 0.7, 0.8])
        for seed in range(seeds):
            value = chance.choice([best] * 9 + [math.nan])
            rows.append(
                row(f"{k:012x}", seed, depth=depth, weight_bits=bits, val_accuracy=value, state=state, **costs)
            )
    chance.shuffle(rows)
    return rows


def dominates(one: dict[str, Any], other: dict[str, Any], costs: Any) -> bool:
    """No larger in every cost, no worse in the metric, better in one."""
    pairs = [(one[cost.name], other[cost.name]) for cost in costs] + [(-one["val_accuracy"], -other["val_accuracy"])]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@pytest.mark.parametrize("costs", CHOICES, ids=lambda costs: " ".join(cost.name for cost in costs))
@pytest.mark.parametrize("seed", range(6))
def test_the_front_equals_its_definition(costs, seed):
    chance = random.Random(seed)
    rows = draw_rows(chance)
    table = aggregate(to_table(rows, TRIALS, {}), bootstrap=True, costs=costs)
    known = [
        one for one in table.to_pylist() if one["state"] == "ok" and not math.isnan(one["val_accuracy"] or math.nan)
    ]
    assert len(known) > 5
    for one in table.to_pylist():
        is_best = one in known and not any(dominates(other, one, costs) for other in known)
        assert (one["pareto_rank"] == 1) is one["is_pareto"] is is_best
        assert (one["pareto_rank"] is None) is (one not in known)
        assert one["p_front"] == ({True: 1.0, False: 0.0}[is_best] if one in known else None)  # its seeds are equal
    shuffled = chance.sample(rows, len(rows))
    assert aggregate(to_table(shuffled, TRIALS, {}), bootstrap=True, costs=costs).equals(table)
    front = table_front(table)
    assert costs_in(front) == costs_in(rows_up_to(table, "size_bytes", 200)) == costs
    spent = [tuple(one[cost.name] for cost in costs) for one in front.to_pylist()]
    assert spent == sorted(spent)


def test_the_default_front_is_noted_nowhere_and_others_in_the_table():
    rows = to_table([row("a", 0)], TRIALS, {})
    assert not aggregate(rows).schema.metadata
    assert costs_in(aggregate(rows)) == (SIZE_BYTES,)
    assert costs_in(aggregate(rows, costs=(SIZE_BYTES,))) == (SIZE_BYTES,)
    assert aggregate(rows, costs=(MACS,)).schema.metadata == {b"qdtune.costs": b"macs"}


@pytest.mark.parametrize(
    ("costs", "heads", "over"),
    [
        ((SIZE_BYTES,), ["bytes"], ""),
        ((MACS,), ["bytes", "MACs"], " over MACs"),
        ((ACTIVATION_BYTES, SIZE_BYTES), ["activation bytes", "bytes"], " over activation bytes and bytes"),
    ],
)
def test_the_table_of_the_front_has_a_column_for_each_cost_and_for_bytes(costs, heads, over):
    table = aggregate(to_table([row("a", 0, size_bytes=2000)], TRIALS, {}), costs=costs)
    found, (cells,) = front_cells(table_front(table), set())
    assert found[: len(heads)] == heads
    by_head = dict(zip(found, cells, strict=True))
    assert [by_head[head] for head in heads] == [
        {"bytes": "2,000", "MACs": "90", "activation bytes": "120"}[head] for head in heads
    ]
    assert front_title(table, "digits") == f"Pareto front on digits{over}: 1 of 1 configuration"


# --- who is ahead of whom


def draw_cohorts(chance: random.Random, count: int = 25) -> list[StoredCohort]:
    found = []
    for k in range(count):
        costs = {cost.name: chance.choice([1, 2, 3]) for cost in COSTS}
        state, score = chance.choice([("ok", chance.choice([0.5, 0.6, 0.7])), ("pruned", None)])
        curve = (chance.choice([0.5, 0.6, 0.7]),)
        found.append(StoredCohort((k,), (0,), costs, state, score, curve, str(k)))
    return found


@pytest.mark.parametrize("costs", [(SIZE_BYTES,), *CHOICES])
def test_the_best_up_to_some_costs_equals_its_definition(costs):
    chance = random.Random(0)
    assert best_up_to(list[Finished[Any]]())((1.0,) * len(costs)) == -math.inf
    for _ in range(10):
        found = find_finished(draw_cohorts(chance), costs)
        best = best_up_to(found)
        for most in product((0, 1, 2, 3), repeat=len(costs)):
            scores = [one.score for one in found if all(a <= b for a, b in zip(one.costs, most, strict=True))]
            assert best(most) == max(scores, default=-math.inf)


def make_spec(objectives: str, **groups: str) -> Any:
    text = f"""version: 1
name: a
parameters: {{depth: {{values: [1, 2]}}, weight_bits: {{values: [2, 8]}}, act_bits: {{values: [2, 8]}}}}
data: {{dataset: digits, val_size: 100}}
early_terminate: {{type: pareto, margin: 0.01, signal: best_so_far, min_epochs: 1, patience: 1}}
objectives: {objectives}
"""
    return loads((text + "".join(f"{key}: {value}\n" for key, value in groups.items())).encode(), "a.yaml")


@pytest.mark.parametrize(("macs", "is_released"), [(90, False), (110, True)])
def test_a_stopped_trial_is_released_if_who_is_better_exceeds_it_in_a_cost(macs, is_released):
    spec = make_spec("[val_accuracy, size_bytes, macs]")
    stopped, finished = (trial.key for trial in plan(spec).trials[:2])
    cohorts = [
        StoredCohort(stopped, (0,), {"size_bytes": 10, "macs": 100}, "pruned", None, (0.6,), "a"),
        StoredCohort(finished, (0,), {"size_bytes": 10, "macs": macs}, "ok", 0.9, (0.9,), "b"),
    ]
    assert [one.trial_id for one in find_to_release(spec, cohorts)] == (["a"] if is_released else [])


def test_neighbours_are_the_best_that_exceed_the_larger_one_in_no_cost():
    def side(trial_id: str, value: float, size: int, macs: int) -> list[dict[str, Any]]:
        key = {"depth": ord(trial_id) - 96, "size_bytes": size, "macs": macs}
        return [row(trial_id, seed, val_accuracy=value + (seed - 1) * 0.03, **key) for seed in (0, 1, 2)]

    rows = [
        *side("a", 0.70, 10, 100),
        *side("b", 0.72, 20, 100),  # above a
        *side("c", 0.71, 10, 300),  # above a
        *side("d", 0.74, 20, 300),  # above b, the better one of b and c
        *side("e", 0.75, 5, 900),  # above none
        *side("f", 0.60, 30, 900),  # not on the front
    ]
    random.Random(0).shuffle(rows)
    table = to_table(rows, TRIALS, {})

    def pairs(*costs: Any) -> set[tuple[str, str]]:
        sides = find_sides(table)
        found = list_near_ties(sides, (0, 1, 2), 1e-9, costs)  # a level at which nothing is told apart
        return {(one.larger.trial_ids[0], one.smaller.trial_ids[0]) for one in found}

    assert pairs(SIZE_BYTES, MACS) == {("b", "a"), ("c", "a"), ("d", "b")}
    assert pairs(MACS) == {("d", "b"), ("e", "d")}  # one after the other
    assert {side.metric for side in find_sides(table)} == {ACCURACY}


# --- rows of an older version


def test_costs_that_an_older_version_did_not_write_are_counted_again():
    spec = make_spec("[val_accuracy, macs]")
    trials = plan(spec).trials
    ended = {"state": "ok", "val_accuracy": 0.9, "seed": 0}
    rows = [trial.columns | ended | {"seed": seed} for trial in trials for seed in spec.seeds]
    table = pa.Table.from_pylist(rows, schema=TRIALS)
    macs = pa.array([None if k % 2 else value for k, value in enumerate(table["macs"].to_pylist())], pa.int64())
    old = table.set_column(table.schema.get_field_index("macs"), "macs", macs)
    assert fill_costs(spec, old).equals(table)
    assert fill_costs(make_spec("null"), old).equals(old)  # nobody asks for them
    foreign = old.set_column(0, "trial_id", pa.array(["other"] * len(old)))
    assert fill_costs(spec, foreign)["macs"].null_count == macs.null_count
