"""Comparisons are made at one value of each axis of bits, also of those of single layers."""

import pyarrow as pa

from qdtune.analysis.answers import answer
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.pareto_table import aggregate
from tests.schemas import HISTORY, TRIALS

SWEEP = """version: 1
name: a
parameters:
  depth: {values: [1, 2]}
  weight_bits: {value: 2}
  first_bits: {values: [null, 8]}
  layer_bits: {values: [null, [4, 2]]}
exclude: [{first_bits: 8, layer_bits: [4, 2]}]
model: {hidden: [64]}
data: {dataset: mnist}
"""


def test_a_depth_is_compared_at_the_same_bits_of_every_layer():
    trials = plan(loads(SWEEP.encode(), "a.yaml")).trials
    told = {"state": "ok", "test_accuracy": 0.8}
    rows = [
        one.columns | told | {"seed": seed, "val_accuracy": 0.9 - 0.01 * one.depth - 0.001 * seed * k}
        for k, one in enumerate(trials)
        for seed in (0, 1, 2)
    ]
    table = pa.Table.from_pylist(rows, schema=TRIALS)
    found = answer(table, HISTORY.empty_table(), aggregate(table)).depth
    assert [(one.weight_bits, one.first_bits, one.layer_bits) for one in found] == [
        (2, None, None),
        (2, None, "4-2"),
        (2, 8, None),
    ]
    assert {one.n_pairs for one in found} == {1}
    assert "At 2 bits (first layer 8 bits), depth 2" in found[2].describe({"first_bits", "layer_bits"})
    assert "At 2 bits (layers of 4-2 bits), depth 2" in found[1].describe({"first_bits", "layer_bits"})
