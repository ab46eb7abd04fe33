"""The bytes of the constants of a network as C (`model/c`), by arithmetic alone, before it is trained.

Weights, windows of convolutions and floats are known. The numbers that make codes of sums are fitted to the trained
network, so their widths are not: here they follow a rule, which `docs/to-the-device.md` compares with programs.

Alphabet: I in, O out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from qdtune.spec.blocks import CONV, MEAN, CnnLayer
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.sizes import FLOAT_BYTES, SHARED_SCALE, code_bytes
from qdtune.spec.structure import LINEAR, of_each
from qdtune.spec.tasks import task_of

WINDOW_BYTES = 40  # of a convolution: ten whole numbers that say how its kernel slides
STEP_BYTES = 4  # of a step in the table of a curved activation
TABLE_BITS = range(3, 9)  # of codes: those of fewer bits are cut by a line too, of more bits found in floats
# Curved activations, with the functions that they call in floats; and the bytes of the coefficients of these.
CURVED: dict[str, tuple[str, ...]] = {"tanh": ("exp", "tanh"), "gelu": ("exp", "gelu"), "leaky_relu": ()}
COEFFICIENT_BYTES = {"exp": 28, "tanh": 24, "gelu": 72}
POW2 = "pow2"  # the `overhead` whose factors are shifts
# The rule: the codes of inputs, weights and next inputs have so many bits together, and half of those of I. A
# multiplier has as many, less these, and so has the offset that is added to its product. Measured on 370 networks.
MULTIPLIER_LESS, OFFSET_LESS, ROUNDING_LESS = 5, 3, 9
WIDTHS = {7: 1, 15: 2}  # bits of a whole number without its sign -> its bytes
# By the names of `axes.OVERHEAD`: bytes of the factor and the term of each output, in whole numbers.
SCORE_FACTOR_BYTES = {"float32": 4, "float16": 4, "int8": 4, POW2: 1}
SCORE_TERM_BYTES = {"float32": 4, "float16": 2, "int8": 1, POW2: 1}


class _Product(NamedTuple):
    """A factor of a layer, and what follows its sums.

    Attributes:
        inputs, outputs: I and O.
        bits, act_bits: of its weights and of its inputs (None: float).
        next_bits: of the inputs of the next factor, None: float; 0: it is the last one.
        steps: 1 if each output has a step size of its own, else 0.
        scales: 1 if each output has a scale of its own besides, that of a normalisation.
        terms: how many numbers are added to each output: a bias, a shift.
        activation: before the next factor of the same layer; empty between layers.
        is_conv: whether it is a convolution.
        has_mean: whether a mean of its outputs follows.
    """

    inputs: int
    outputs: int
    bits: int
    act_bits: int | None
    next_bits: int | None
    steps: int
    scales: int
    terms: int
    activation: str
    is_conv: bool
    has_mean: bool

    @property
    def sums_codes(self) -> bool:
        """Whether its sums are whole numbers."""
        return self.bits != FLOAT_BITS and self.act_bits is not None

    @property
    def has_table(self) -> bool:
        """Whether its sums become codes by a table of steps."""
        return self.activation in CURVED and self.next_bits in TABLE_BITS

    @property
    def makes_codes(self) -> bool:
        """Whether its sums become the next codes in whole numbers."""
        is_line = self.activation not in CURVED or self.has_table or (self.next_bits or 0) < TABLE_BITS[0]
        return self.sums_codes and bool(self.next_bits) and is_line and not self.has_mean


def flash_bytes(configuration: Any) -> int:
    """The bytes of the constants that the C of a `Configuration` reads to find a class, or else its outputs."""
    c, called = configuration, set[str]()
    features = c.structure.normalised
    total = 2 * FLOAT_BYTES * features if features > 1 else 0
    for product in _list_products(c):
        weights = product.inputs * product.outputs
        is_float = product.bits == FLOAT_BITS
        total += FLOAT_BYTES * weights if is_float else code_bytes(weights, product.bits, c.levels)
        total += WINDOW_BYTES if product.is_conv else 0
        if product.makes_codes:
            total += product.outputs * _line_bytes(product, c.overhead) + _table_bytes(product)
        elif product.sums_codes and product.next_bits == 0 and task_of(c.task).has_class:
            total += product.outputs * _score_bytes(product, c.overhead)
        else:
            total += product.outputs * FLOAT_BYTES * (product.steps + product.scales + product.terms)
            called |= {*CURVED.get(product.activation, ())}
    return total + sum(COEFFICIENT_BYTES[name] for name in called)


def _list_products(c: Any) -> Iterator[_Product]:
    """The factors of the layers of a `Configuration`, in the order of modules."""
    structure, count = c.structure, len(c.structure.layers)
    bits, act_bits = of_each(c.bits, count), of_each(c.input_bits, count)
    own_scales, means = c.overhead not in SHARED_SCALE, _find_means(c.cnn_layers)
    for j, (layer, dims) in enumerate(zip(structure.layers, structure.dims(c.depth, c.decompose), strict=True)):
        for k, (inputs, outputs) in enumerate(pairwise(dims)):
            is_end = k == len(dims) - 2
            is_normed = j < structure.norm_layers if is_end else structure.factor_norms
            following = act_bits[j] if not is_end else act_bits[j + 1] if j + 1 < count else 0
            yield _Product(
                inputs,
                outputs,
                bits[j],
                act_bits[j],
                following,
                steps=int(c.granularity == "channel" and bits[j] != FLOAT_BITS),
                scales=int(is_normed and own_scales),
                terms=(is_end and layer.has_bias) + (is_normed and structure.has_shifts),
                activation="" if is_end else c.activation,
                is_conv=layer.kind != LINEAR,
                has_mean=is_end and j in means,
            )


def _find_means(layers: tuple[CnnLayer, ...] | None) -> set[int]:
    """The places of the convolutions whose outputs are averaged before the next layer."""
    found, place = set[int](), -1
    for layer in layers or ():
        place += layer.kind == CONV
        if layer.kind == MEAN:
            found.add(place)
    return found


def _line_bytes(product: _Product, overhead: str) -> int:
    """The bytes for each output of the line that makes the next codes of its sums."""
    assert product.act_bits is not None, "its sums are whole numbers"
    assert product.next_bits, "it makes codes"
    size = max(2, product.bits) + product.act_bits + product.next_bits + math.log2(product.inputs) / 2
    has_factor = (product.steps or product.scales) and product.next_bits > 1  # of one bit only the sign is asked for
    if overhead == POW2:
        return bool(has_factor) + bool(product.terms)
    factor = _width(size - MULTIPLIER_LESS) if has_factor else 0
    if product.terms:
        return factor + _width(size - OFFSET_LESS)
    return factor + min(factor, _width(size - ROUNDING_LESS))


def _width(bits: float) -> int:
    """The bytes of a whole number of these bits and a sign."""
    return next((size for most, size in WIDTHS.items() if bits <= most), 4)


def _table_bytes(product: _Product) -> int:
    """The bytes of the steps of a curved activation: half of all codes, as a rule."""
    if not product.has_table or product.next_bits is None:
        return 0
    steps = 2 ** (product.next_bits - 1)
    falls = product.activation == "gelu"  # then codes come twice, so each step says its code
    return STEP_BYTES * steps + (steps + 1 if falls else 0)


def _score_bytes(product: _Product, overhead: str) -> int:
    """The bytes for each output of the whole numbers by which outputs are compared."""
    factor = SCORE_FACTOR_BYTES[overhead] if product.steps or product.scales else 0
    return factor + (SCORE_TERM_BYTES[overhead] if product.terms else 0)
