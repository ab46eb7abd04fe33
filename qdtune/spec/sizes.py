"""The widths of the factors and the bytes of a packed model, by arithmetic alone.

It does not import torch, so that a dry run knows every size before heavy imports. `quantize.count_sizes(model)`
counts the same bytes from the tensors of a built model, and a test compares the two. `structure` adds up a network.

Alphabet: I in, O out, H inner width, D depth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qdtune.spec.choices import FLOAT_BITS

TRITS = 5  # ternary digits in a byte: 3^5 = 243
FLOAT_BYTES = 4
# By the names of `axes.OVERHEAD`: bytes of a step size or scale, of a bias or shift, and of the unit that the biases
# or shifts of one layer share; and those with which all features of a normalisation share one scale.
FACTOR_BYTES = {"float32": FLOAT_BYTES, "float16": 2, "int8": 2, "pow2": 1}
TERM_BYTES = {"float32": FLOAT_BYTES, "float16": 2, "int8": 1, "pow2": 1}
UNIT_BYTES = {"float32": 0, "float16": 0, "int8": 1, "pow2": 1}
SHARED_SCALE = ("int8", "pow2")


def inner_width(in_features: int, out_features: int, depth: int) -> int:
    """The width H between the factors at which D factors hold about as many weights as one I x O matrix.

    Solves I*H + (D-2)*H^2 + H*O = I*O for H and rounds to the nearest whole number, as the notebook does. The result
    is at least 1; the notebook's is 0 for a 1 x 1 layer.

    Raises:
        ValueError: depth below 2 (one factor has nothing in between).
    """
    if depth < 2:
        raise ValueError(f"depth must be >= 2 for an inner width, got {depth}")
    i, o = in_features, out_features
    if depth == 2:
        return max(1, round(i * o / (i + o)))
    a, b, c = depth - 2, i + o, -i * o
    return max(1, round((-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)))


def factor_dims(in_features: int, out_features: int, depth: int) -> tuple[int, ...]:
    """The D+1 widths (I, H, ..., H, O) of one layer split into D factors.

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be >= 1, got {depth}")
    if depth == 1:
        return (in_features, out_features)
    return (in_features, *[inner_width(in_features, out_features, depth)] * (depth - 1), out_features)


@dataclass(frozen=True)
class Sizes:
    """The bytes of the tensors to ship, by kind; the sizes of parts add up.

    Attributes:
        params: trainable numbers: weights, biases, the two vectors of a normalisation.
        weight_bytes: sum over factors of ceil(weights * bits / 8), of ternary ones ceil(weights / 5).
        scale_bytes: step sizes: one per quantised factor or per output channel of it, one more where its input is
            quantised too. Each takes 4 bytes, or less with another `overhead`.
        bias_bytes: biases and normalisation (scale and shift, the statistics folded in).
        fp32_bytes: the same model with nothing quantised.
        other_bytes: layers of unknown kinds, which are shipped unchanged.
    """

    params: int = 0
    weight_bytes: int = 0
    scale_bytes: int = 0
    bias_bytes: int = 0
    fp32_bytes: int = 0
    other_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """The bytes to ship: the payload that `qdtune export` writes."""
        return self.weight_bytes + self.scale_bytes + self.bias_bytes + self.other_bytes

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
            self.scale_bytes + other.scale_bytes,
            self.bias_bytes + other.bias_bytes,
            self.fp32_bytes + other.fp32_bytes,
            self.other_bytes + other.other_bytes,
        )


def code_bytes(weights: int, weight_bits: int, levels: str) -> int:
    """The bytes of `weights` packed codes; five ternary codes, which count as 2 bits, share a byte."""
    if levels == "ternary" and weight_bits == 2:
        return -(-weights // TRITS)
    return -(-weights * weight_bits // 8)


def term_bytes(numbers: int, overhead: str) -> int:
    """The bytes of the biases or shifts of one layer."""
    return numbers * TERM_BYTES[overhead] + (UNIT_BYTES[overhead] if numbers else 0)


def matrix_sizes(
    weights: int,
    biases: int,
    weight_bits: int,
    act_bits: int | None,
    levels: str = "symmetric",
    steps: int = 1,
    overhead: str = "float32",
) -> Sizes:
    """The bytes of one factor.

    Args:
        weights: how many numbers of `weight_bits` bits (32: float).
        biases: how many.
        act_bits: of its input; None: float.
        levels: of the weights.
        steps: step sizes of the weights: 1, or one per output channel.
        overhead: of biases and step sizes, a name of `axes.OVERHEAD`.
    """
    scales = steps * (weight_bits < FLOAT_BITS) + (act_bits is not None)
    return Sizes(
        params=weights + biases,
        weight_bytes=code_bytes(weights, weight_bits, levels),
        scale_bytes=FACTOR_BYTES[overhead] * scales,
        bias_bytes=term_bytes(biases, overhead),
        fp32_bytes=FLOAT_BYTES * (weights + biases),
    )


def norm_sizes(features: int, overhead: str = "float32", norms: int = 1, has_shift: bool = True) -> Sizes:
    """The bytes of batch normalisations: a scale and a shift per feature, or a scale alone.

    Args:
        features: of all of them together.
        overhead: of both numbers, a name of `axes.OVERHEAD`.
        norms: how many normalisations they are; of no features, 0.
        has_shift: whether they have shifts.
    """
    floats = (1 + has_shift) * features
    stored = (norms if overhead in SHARED_SCALE else features) * FACTOR_BYTES[overhead]
    if has_shift:
        stored += features * TERM_BYTES[overhead] + norms * UNIT_BYTES[overhead]
    return Sizes(params=floats, bias_bytes=stored, fp32_bytes=FLOAT_BYTES * floats)


def other_sizes(params: int, size: int) -> Sizes:
    """The bytes of parts that are neither split nor quantised: `params` trainable numbers, `size` bytes in all."""
    return Sizes(params=params, fp32_bytes=size, other_bytes=size)


def normalisation_sizes(features: int) -> Sizes:
    """The bytes of the scales and shifts that normalise the inputs; none of them is trained."""
    return other_sizes(0, 2 * FLOAT_BYTES * features)
