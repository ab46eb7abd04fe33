"""`objectives` of a sweep file: what it may name, and what its costs are worth."""

import math

import pytest

from qdtune.messages import SpecError
from qdtune.spec.comparable import check_comparable
from qdtune.spec.objectives import (
    ACTIVATION_BYTES,
    COSTS,
    MACS,
    SIZE_BYTES,
    find_known,
    front_of,
    front_values,
    say_cheaper,
    say_costs,
    worst_log2,
)
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import ACCURACY

SWEEP = """version: 1
name: a
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [2, 8]}}
data: {dataset: [digits, synthetic], val_size: 100}
"""
KNOWN = "size_bytes, macs, activation_bytes, ram_bytes, flash_bytes"


def read(objectives=None):
    return loads((SWEEP + (f"objectives: {objectives}\n" if objectives else "")).encode(), "a.yaml")


def mistakes(objectives):
    with pytest.raises(SpecError) as caught:
        read(objectives)
    return str(caught.value).splitlines()


def test_without_the_key_the_front_is_over_bytes_and_no_text_says_so():
    spec = read()
    assert spec.costs == (SIZE_BYTES,)
    assert "objectives" not in spec.to_yaml()
    assert read("null").to_yaml() == spec.to_yaml()


@pytest.mark.parametrize(
    ("objectives", "costs"),
    [
        ("[val_accuracy, size_bytes]", (SIZE_BYTES,)),
        ("[val_accuracy, macs]", (MACS,)),
        ("[val_accuracy, activation_bytes, macs, size_bytes]", (ACTIVATION_BYTES, MACS, SIZE_BYTES)),
    ],
)
def test_the_costs_are_those_of_the_file_in_its_order(objectives, costs):
    spec = read(objectives)
    assert spec.costs == costs
    assert loads(spec.to_yaml().encode(), "b.yaml") == spec
    assert spec.resolve("synthetic").costs == costs
    assert [one.name for one in front_of(spec.metric, spec.costs)] == list(spec.objectives)


@pytest.mark.parametrize(
    ("objectives", "told"),
    [
        ("[val_accuracy]", f"objectives: names no cost (one to 3 of {KNOWN})"),
        ("[size_bytes, val_accuracy]", "objectives[0]: size_bytes is a cost: the metric comes first (val_accuracy)"),
        ("[val_mae, macs]", "objectives[0]: val_mae does not judge this sweep (val_accuracy; data.metric can name"),
        ("[val_accuracy, val_f1]", f"objectives[1]: val_f1 is no cost ({KNOWN})"),
        ("[val_accuracy, macs, macs]", "objectives: macs appears twice"),
        ("[val_accuracy, weight_bytes]", "objectives[1]: unknown 'weight_bytes'; did you mean 'size_bytes'?"),
        ("[]", f"objectives: empty list (the metric, then one to 3 of {KNOWN}; or null: the metric and size_bytes)"),
        ("[val_accuracy, MACs]", "objectives[1]: unknown 'MACs'; did you mean 'macs'?"),
        ("macs", "objectives: 'macs' is not allowed (a list)"),
    ],
)
def test_a_mistake_is_told_once_with_what_is_right(objectives, told):
    (line,) = mistakes(objectives)
    assert line.startswith(f"error: a.yaml:5: {told}")


def test_objectives_change_no_id_and_no_result():
    one, other = (
        loads(spec.to_yaml().encode(), "a").resolve("digits") for spec in (read(), read("[val_accuracy, macs]"))
    )
    assert [trial.trial_id for trial in plan(one).trials] == [trial.trial_id for trial in plan(other).trials]
    check_comparable(other, one.to_yaml().encode(), "runs/a")


def test_values_and_words_of_costs():
    spec = read("[val_accuracy, macs, size_bytes]").resolve("digits")
    trials = plan(spec).trials
    for trial in trials:
        known = front_values(trial, 0.9, spec.costs)
        assert known == [0.9, trial.structure.macs(trial.depth), trial.sizes.size_bytes]
    row = {"macs": 5120, "size_bytes": 1, "activation_bytes": 2}
    assert say_costs(spec.costs, row) == "5,120 MACs, 1 byte"
    assert say_cheaper((SIZE_BYTES,)) == "of equal or smaller size"
    assert say_cheaper((MACS,)) == "with no more MACs"
    assert say_cheaper(COSTS) == "with no more bytes, MACs, activation bytes, RAM bytes and flash bytes"
    assert front_of(ACCURACY, COSTS)[0].name == "val_accuracy"


def test_a_hypervolume_ends_where_nothing_is_compressed_or_at_twice_the_largest_cost():
    trials = plan(read().resolve("digits")).trials
    most = max(find_known(trial, "macs") for trial in trials)
    assert worst_log2(MACS, trials) == 1 + math.log2(most)
    assert worst_log2(SIZE_BYTES, trials) == math.log2(max(trial.sizes.fp32_bytes for trial in trials))
    assert worst_log2(MACS, []) == worst_log2(SIZE_BYTES, []) == 0
    assert MACS.log2(0) == 0  # it has no logarithm
