"""The bytes of constants by arithmetic, against sums by hand; `tests/model/c/test_constants.py` compares programs."""

import pytest

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads

SWEEP = """
version: 1
name: a
parameters: {{{axes}}}
seeds: [0]
data: {{dataset: digits, val_size: 100}}
model: {{{model}}}
"""


def count(axes, model):
    """The bytes of one configuration on digits: 64 inputs, 10 outputs."""
    listed = ", ".join(f"{name}: {{value: {value}}}" for name, value in axes.items())
    (trial,) = plan(loads(SWEEP.format(axes=listed, model=model).encode(), "a.yaml").resolve("digits")).trials
    return trial.columns["flash_bytes"]


MLP = "name: mlp, hidden: [16], batch_norm: true"
WEIGHTS = (64 * 16 + 16 * 10) // 2  # of 4 bits
CODES = {"weight_bits": 4, "act_bits": 8}


@pytest.mark.parametrize(
    ("axes", "bytes_of_numbers"),
    [
        # The next codes of 4 + 8 + 8 bits and half of 6: multipliers of 18 bits, offsets of 20; outputs with biases.
        (CODES, 16 * (4 + 4) + 10 * 4),
        (CODES | {"overhead": "int8"}, 16 * 4 + 10 * 1),  # one scale for all features
        (CODES | {"overhead": "pow2"}, 16 * 1 + 10 * 1),
        (CODES | {"act_bits": 2}, 16 * (1 + 2) + 10 * 4),  # 4 + 2 + 2 + 3 bits: 6 and 8
        (CODES | {"act_bits": 4}, 16 * (2 + 2) + 10 * 4),
        (CODES | {"granularity": "channel"}, 16 * (4 + 4) + 10 * (4 + 4)),
        (CODES | {"bias": "none"}, 16 * (4 + 2)),  # an offset rounds: 14 bits
        (
            CODES | {"act_bits": 1},
            16 * 1 + 10 * 4,
        ),  # only the sign of a sum is asked for: offsets of 4 + 1 + 1 + 3 - 3 bits
        ({"weight_bits": 4}, 4 * (16 * 2 + 10)),  # floats: scales and shifts, and biases
        ({"weight_bits": 4, "granularity": "channel"}, 4 * (16 * 3 + 10 * 2)),
    ],
)
def test_what_is_beside_the_weights(axes, bytes_of_numbers):
    assert count(axes, MLP) == WEIGHTS + bytes_of_numbers


def test_weights_are_packed_as_in_files():
    bare = "name: mlp, hidden: [], batch_norm: false"
    assert count({"weight_bits": 3, "bias": "none"}, bare) == 64 * 10 * 3 // 8
    assert count({"weight_bits": 2, "levels": "ternary", "bias": "none"}, bare) == 64 * 10 // 5
    assert count({"weight_bits": 32, "bias": "none"}, bare) == 64 * 10 * 4


def test_a_convolution_has_a_window_and_a_mean_is_of_floats():
    axes = {"weight_bits": 8, "act_bits": 8, "overhead": "int8", "bias": "none"}
    codes = count(axes, "name: cnn, blocks: [conv 6, pool], hidden: [], batch_norm: true")
    assert codes == 6 * 9 + 40 + 6 * 9 * 10
    axes |= {"bias": "all"}
    floats = count(axes, "name: cnn, blocks: [conv 6, mean], hidden: [], batch_norm: true")
    assert floats == 6 * 9 + 40 + 6 * 4 + 6 * 10 + 10 * 1


@pytest.mark.parametrize(
    ("activation", "act_bits", "table"),
    [
        ("relu", 8, 0),
        ("tanh", 8, 4 * 128),
        ("leaky_relu", 4, 4 * 8),
        ("gelu", 4, 4 * 8 + 9),
        ("tanh", 2, 0),  # a line does
        ("tanh", 10, 28 + 24),  # the coefficients of a function of floats, once
        ("gelu", 12, 28 + 72),
    ],
)
def test_a_curved_activation_has_a_table_of_steps(activation, act_bits, table):
    axes = {"weight_bits": 2, "act_bits": act_bits, "overhead": "pow2", "bias": "none", "depth": 3}
    model = "name: mlp, hidden: [16], batch_norm: false"
    tables = 4 if act_bits <= 8 else 1  # two layers of three factors
    straight = count(axes | {"activation": "identity"}, model)
    assert count(axes | {"activation": activation}, model) - straight == tables * table
