"""How wide the factors are and how many bytes a model ships, by arithmetic alone.

No torch here, so that a dry run knows every size before anything heavy is imported. `quantize.ledger(model)`
counts the same bytes from the tensors of a built model, and a test holds the two together.

Alphabet: I in, O out, H inner width, D depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FLOAT_BITS = 32
FLOAT_BYTES = 4


def inner_width(in_features: int, out_features: int, depth: int) -> int:
    """The width H between the factors at which D factors hold about as many weights as one I x O matrix.

    Solves I*H + (D-2)*H^2 + H*O = I*O for H and rounds to the nearest whole number (the notebook's closed form),
    never below 1, which the notebook would let happen for a 1 x 1 layer.

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
    """The D+1 widths (I, H, ..., H, O) of one layer split into D factors."""
    if depth == 1:
        return (in_features, out_features)
    return (in_features, *[inner_width(in_features, out_features, depth)] * (depth - 1), out_features)


@dataclass(frozen=True)
class Ledger:
    """The bytes of the tensors that have to be shipped, by kind; ledgers of parts add up.

    Attributes:
        params: trainable numbers: weights, biases, the two vectors of a normalisation.
        weight_bytes: sum over factors of ceil(weights * bits / 8).
        scale_bytes: 4 per step size: one per quantised factor, one more where its input is quantised too.
        bias_bytes: biases and normalisation (scale and shift, the statistics folded in), as float32.
        fp32_bytes: the same model with nothing quantised.
    """

    params: int = 0
    weight_bytes: int = 0
    scale_bytes: int = 0
    bias_bytes: int = 0
    fp32_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes to ship, which is what `qdtune.export` writes as payload."""
        return self.weight_bytes + self.scale_bytes + self.bias_bytes

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(
            self.params + other.params,
            self.weight_bytes + other.weight_bytes,
            self.scale_bytes + other.scale_bytes,
            self.bias_bytes + other.bias_bytes,
            self.fp32_bytes + other.fp32_bytes,
        )


def matrix_ledger(weights: int, biases: int, weight_bits: int, act_bits: int | None) -> Ledger:
    """The bytes of one factor: `weights` numbers of `weight_bits` bits (32: float), `biases` floats, its scales."""
    scales = (weight_bits < FLOAT_BITS) + (act_bits is not None)
    return Ledger(
        params=weights + biases,
        weight_bytes=-(-weights * weight_bits // 8),
        scale_bytes=FLOAT_BYTES * scales,
        bias_bytes=FLOAT_BYTES * biases,
        fp32_bytes=FLOAT_BYTES * (weights + biases),
    )


def norm_ledger(features: int) -> Ledger:
    """The bytes of one batch normalisation: a scale and a shift per feature, float32."""
    floats = 2 * features
    return Ledger(params=floats, bias_bytes=FLOAT_BYTES * floats, fp32_bytes=FLOAT_BYTES * floats)


def mlp_ledger(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    *,
    depth: int,
    weight_bits: int,
    act_bits: int | None,
    batch_norm: bool = False,
) -> Ledger:
    """The bytes of `models.mlp` after `decompose` and `quantize`.

    A layer that is followed by a normalisation has no bias: the shift does its work.
    """
    widths = (inputs, *hidden, classes)
    total = Ledger()
    for layer, (i, o) in enumerate(pairwise(widths)):
        normed = batch_norm and layer < len(hidden)
        dims = factor_dims(i, o, depth)
        for k in range(depth):
            biases = o if k == depth - 1 and not normed else 0
            total += matrix_ledger(dims[k] * dims[k + 1], biases, weight_bits, act_bits)
        if normed:
            total += norm_ledger(o)
    return total
