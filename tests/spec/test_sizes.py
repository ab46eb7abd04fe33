"""Widths and bytes against the notebook's closed form and against sums written out by hand."""

import math

import pytest

from qdtune.spec.blocks import cnn_structure, list_cnn_layers
from qdtune.spec.sizes import factor_dims, inner_width
from qdtune.spec.structure import LayerShape, Structure, mlp_sizes, mlp_structure

PAIRS = [(i, o) for i in (1, 2, 3, 7, 10, 24, 64, 100, 784, 3072) for o in (1, 2, 5, 10, 24, 33, 256, 1024)]


def notebook_width(m: int, n: int, depth: int) -> int:
    """The notebook's `DecomposedLinear.l`, line by line."""
    if depth == 2:
        return round(m * n / (m + n))
    a = depth - 2
    b = m + n
    c = -m * n
    return round((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a))


@pytest.mark.parametrize("depth", range(2, 17))
def test_inner_width_is_the_notebooks(depth):
    for i, o in PAIRS:
        assert inner_width(i, o, depth) == max(1, notebook_width(i, o, depth)), (i, o)


@pytest.mark.parametrize("depth", range(2, 17))
def test_inner_width_keeps_the_parameter_count(depth):
    def weights(h: float, i: int, o: int) -> float:
        return i * h + (depth - 2) * h * h + h * o

    for i, o in PAIRS:
        h = inner_width(i, o, depth)
        # The count rises with h, so the target lies between the counts half a unit below and above.
        assert weights(h + 0.5, i, o) >= i * o - 1e-6, (i, o)
        assert h == 1 or weights(h - 0.5, i, o) <= i * o + 1e-6, (i, o)


def test_inner_width_of_one_factor_is_refused():
    with pytest.raises(ValueError, match="depth must be >= 2 for an inner width, got 1"):
        inner_width(784, 24, 1)


def test_factor_dims_start_and_end_with_the_layer():
    assert factor_dims(784, 24, 1) == (784, 24)
    assert factor_dims(784, 24, 2) == (784, 23, 24)
    assert factor_dims(24, 10, 4) == (24, 5, 5, 5, 10)


# Factors of 784-24-10 by depth, their inner widths read off the notebook's formula by hand.
FACTORS = {
    1: [784 * 24, 24 * 10],
    2: [784 * 23, 23 * 24, 24 * 7, 7 * 10],
    3: [784 * 23, 23 * 23, 23 * 24, 24 * 6, 6 * 6, 6 * 10],
    4: [784 * 22, 22 * 22, 22 * 22, 22 * 24, 24 * 5, 5 * 5, 5 * 5, 5 * 10],
    5: [784 * 22, *[22 * 22] * 3, 22 * 24, 24 * 5, *[5 * 5] * 3, 5 * 10],
    6: [784 * 21, *[21 * 21] * 4, 21 * 24, 24 * 5, *[5 * 5] * 4, 5 * 10],
}


@pytest.mark.parametrize("depth", range(1, 7))
@pytest.mark.parametrize("bits", range(1, 9))
def test_size_bytes_is_the_sum_by_hand(depth, bits):
    factors = FACTORS[depth]
    expected = sum(math.ceil(n * bits / 8) for n in factors) + 4 * len(factors) + 4 * (24 + 10)
    assert mlp_sizes(784, [24], 10, depth=depth, weight_bits=bits, act_bits=None).size_bytes == expected


# Outputs of the same factors: as many step sizes as there are channels.
CHANNELS = {
    1: [24, 10],
    2: [23, 24, 7, 10],
    3: [23, 23, 24, 6, 6, 10],
    4: [*[22] * 3, 24, *[5] * 3, 10],
    5: [*[22] * 4, 24, *[5] * 4, 10],
    6: [*[21] * 5, 24, *[5] * 5, 10],
}


@pytest.mark.parametrize("depth", range(1, 7))
def test_size_bytes_of_channels_ternary_codes_and_a_whole_head_are_the_sums_by_hand(depth):
    def size(bits, **axes):
        return mlp_sizes(784, [24], 10, depth=depth, weight_bits=bits, act_bits=None, **axes).size_bytes

    for bits in (1, 2, 3, 8):
        assert size(bits, granularity="channel") - size(bits) == 4 * (sum(CHANNELS[depth]) - 2 * depth)
        assert size(bits, levels="full") == size(bits)
        trits = sum(math.ceil(n / 5) - math.ceil(n * 2 / 8) for n in FACTORS[depth])
        assert size(bits, levels="ternary") - size(bits) == (trits if bits == 2 else 0)
        head = sum(math.ceil(n * bits / 8) + 4 for n in FACTORS[depth][depth:])
        assert size(bits, decompose="hidden") - size(bits) == 240 * bits // 8 + 4 - head
    assert size(32, granularity="channel", levels="ternary") == size(32)


def test_size_bytes_of_the_notebooks_one_bit_model():
    ledger = mlp_sizes(784, [24], 10, depth=2, weight_bits=1, act_bits=None)
    assert (ledger.size_bytes, ledger.weight_bytes, ledger.scale_bytes, ledger.bias_bytes) == (2505, 2353, 16, 136)
    assert ledger.params == 18_856
    assert ledger.fp32_bytes == 75_424


def test_size_bytes_counts_activation_scales_normalisation_and_floats():
    plain = mlp_sizes(784, [24], 10, depth=2, weight_bits=4, act_bits=None)
    acts = mlp_sizes(784, [24], 10, depth=2, weight_bits=4, act_bits=8)
    assert acts.size_bytes - plain.size_bytes == 4 * 4  # one more scale for each of four factors
    normed = mlp_sizes(784, [24], 10, depth=2, weight_bits=4, act_bits=None, batch_norm=True)
    assert normed.size_bytes - plain.size_bytes == 2 * 24 * 4 - 24 * 4  # scale and shift, less the bias
    between = mlp_sizes(784, [24], 10, depth=3, weight_bits=4, act_bits=None, batch_norm="factors")
    outside = mlp_sizes(784, [24], 10, depth=3, weight_bits=4, act_bits=None, batch_norm=True)
    assert between.size_bytes - outside.size_bytes == 2 * (23 + 23 + 6 + 6) * 4  # two between three factors
    floats = mlp_sizes(784, [24], 10, depth=1, weight_bits=32, act_bits=None)
    assert floats.size_bytes == floats.fp32_bytes == 4 * (784 * 24 + 24 * 10 + 34)


def test_bytes_of_overhead_by_hand():
    weights, steps, scales, shifts, biases = 64 * 12 * 2 // 8 + 12 * 10 * 4 // 8, 2, 12, 12, 10
    normed = [mlp_structure(64, (12,), 10, batch_norm=True, bias=bias) for bias in ("all", "none")]
    for overhead, whole, without in (
        ("float32", 4 * (steps + scales + shifts + biases), 4 * (steps + scales)),
        ("float16", 2 * (steps + scales + shifts + biases), 2 * (steps + scales)),
        ("int8", 2 * steps + 2 + (1 + shifts) + (1 + biases), 2 * steps + 2),
        ("pow2", steps + 1 + (1 + shifts) + (1 + biases), steps + 1),  # one scale; a unit for shifts, one for biases
    ):
        found = [one.sizes(1, (2, 4), None, overhead=overhead).size_bytes for one in normed]
        assert found == [weights + whole, weights + without]
    assert [one.sizes(1, 32, None).params for one in normed] == [768 + 120 + 12 + 12 + 10, 768 + 120 + 12]
    plain = mlp_structure(64, (12,), 10)
    assert plain.sizes(1, 2, 4, overhead="pow2").size_bytes == 192 + 30 + 4 + 13 + 11  # inputs have steps, too
    assert plain.sizes(1, 2, None, granularity="channel", overhead="pow2").scale_bytes == 12 + 10
    between = mlp_structure(20, (8,), 5, batch_norm="factors")
    h, g = (dims[1] for dims in between.dims(3))
    found = between.sizes(3, 1, None, overhead="pow2")
    assert found.bias_bytes == 2 * (1 + 1 + h) + (1 + 1 + 8) + 2 * (1 + 1 + g) + (1 + 5)


def test_the_ledger_of_a_network_by_hand():
    plain = mlp_structure(20, (8, 6), 5)
    assert plain.macs(1) == 20 * 8 + 8 * 6 + 6 * 5
    (h, g, last) = (dims[1] for dims in plain.dims(2))
    assert plain.macs(2) == 20 * h + h * 8 + 8 * g + g * 6 + 6 * last + last * 5
    assert plain.macs(2, "hidden") == 20 * h + h * 8 + 8 * g + g * 6 + 6 * 5
    assert plain.activation_bytes(1, None) == 4 * (20 + 8)
    assert plain.activation_bytes(1, 3) == -(-3 * (20 + 8) // 8)
    assert plain.activation_bytes(2, None) == 4 * (20 + h)
    assert plain.activation_bytes(1, (1, 8, None)) == 4 * (6 + 5)


def test_the_ledger_of_layers_that_are_applied_at_many_positions():
    # 3 x 3 kernels on 4 channels of 8 x 8 pixels, stride 2: 6 channels of 4 x 4; then a row.
    conv = LayerShape(4 * 9, 6, True, "conv2d", positions=16, reads=4 * 64, writes=6 * 16)
    both = Structure((conv, LayerShape(96, 10, True)))
    assert both.macs(1) == 16 * 36 * 6 + 960
    assert both.activation_bytes(1, 8) == 256 + 96
    h = both.dims(2)[0][1]
    assert both.macs(2, "hidden") == 16 * (36 * h + h * 6) + 960
    assert both.activation_bytes(3, 8, "hidden") == 256 + 16 * both.dims(3)[0][1]
    blocks = list_cnn_layers(("conv 6 3x3 /2", "dw", "pool"), None, "same", (4, 8, 8))
    cnn = cnn_structure(blocks, (), 10)
    assert cnn.macs(1) == 16 * 36 * 6 + 16 * 9 * 6 + 6 * 2 * 2 * 10
    assert cnn.activation_bytes(1, 8) == 256 + 96
    called_twice = LayerShape(5, 5, False, positions=2, reads=5, writes=5)
    assert (Structure((called_twice,)).macs(1), Structure((called_twice,)).activation_bytes(1, 8)) == (50, 10)
