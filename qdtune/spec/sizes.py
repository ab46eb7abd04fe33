"""The widths of the factors and the bytes of a packed model, by arithmetic alone.

It does not import torch, so that a dry run knows every size before heavy imports. `quantize.count_sizes(model)`
counts the same bytes from the tensors of a built model, and a test compares the two. A layer kind of
`model/layers` describes its layers as matrices (`LayerShape`); the arithmetic below is the same for all kinds.

Alphabet: I in, O out, H inner width, D depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from qdtune.spec.choices import FLOAT_BITS

TRITS = 5  # ternary digits in a byte: 3^5 = 243
FLOAT_BYTES = 4
# By the names of `axes.OVERHEAD`: bytes of a step size or scale, of a bias or shift, and of the unit that the biases
# or shifts of one layer share; and those with which all features of a normalisation share one scale.
FACTOR_BYTES = {"float32": FLOAT_BYTES, "float16": 2, "int8": 2, "pow2": 1}
TERM_BYTES = {"float32": FLOAT_BYTES, "float16": 2, "int8": 1, "pow2": 1}
UNIT_BYTES = {"float32": 0, "float16": 0, "int8": 1, "pow2": 1}
SHARED_SCALE = ("int8", "pow2")
LINEAR = "linear"  # the first layer kind


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


def of_each(bits: Any, layers: int) -> Sequence[Any]:
    """The bits of each layer, given those of all, or a tuple of those of each.

    Raises:
        ValueError: the tuple is that of another number of layers.
    """
    found = bits if isinstance(bits, tuple) else (bits,) * layers
    if len(found) != layers:
        raise ValueError(f"there must be bits for each of {layers} layers, got {found}")
    return found


class LayerShape(NamedTuple):
    """A layer that is quantised, and may be split, as the matrix of its weights.

    Attributes:
        inputs: I, the weights of one output; for a convolution, the input channels times the area of its kernel.
        outputs: O; for a convolution, the output channels.
        has_bias: whether each output has a bias.
        kind: the layer kind, by its name in packed programs.
        is_split: whether `decompose` splits it into factors of the widths `factor_dims`.
        positions: how often one sample is multiplied by the matrix: for a convolution, the pixels of one output
            channel; of all calls together if the layer is called several times.
        reads: the numbers of one sample that a call takes, the most of several; None: `inputs` for each position.
        writes: the numbers that a call gives; None: `outputs` for each position.
    """

    inputs: int
    outputs: int
    has_bias: bool
    kind: str = LINEAR  # older sweep files have only linear layers and the fields above
    is_split: bool = True
    positions: int = 1
    reads: int | None = None
    writes: int | None = None

    @property
    def read_numbers(self) -> int:
        """The numbers of one sample that a call takes."""
        return self.inputs * self.positions if self.reads is None else self.reads

    @property
    def call_positions(self) -> int:
        """The positions of one call."""
        return self.positions if self.writes is None else self.writes // self.outputs


class Structure(NamedTuple):
    """The parts of a network before it is split, as far as they decide its bytes.

    Attributes:
        layers: each layer that is quantised, in the order of modules.
        norms: the number of features that are batch-normalised.
        factor_norms: whether the features between the factors of a layer are normalised too.
        other: all other trainable numbers.
        other_bytes: the bytes of these numbers and of the buffers of the model.
        head: the place, among the layers that are split, of the one that runs last; None: the last of them.
        normalised: how many scales, and as many shifts, normalise the inputs; they are shipped and not trained.
        loaded: a hash of the first weights that no seed changes, such as those of a checkpoint; or empty.
        unsplit_end: the place, among all layers, of the one that runs last, if it is never split; None: the head.
        norm_layers: how many normalisations the `norms` belong to.
        has_shifts: whether normalisations have shifts.
    """

    layers: tuple[LayerShape, ...]
    norms: int = 0
    other: int = 0
    other_bytes: int = 0
    factor_norms: bool = False
    head: int | None = None
    loaded: str = ""
    normalised: int = 0
    unsplit_end: int | None = None
    norm_layers: int = 0
    has_shifts: bool = True

    @property
    def later_kinds(self) -> list[str]:
        """The kinds of its layers that older versions neither split nor quantised: other results, so other ids."""
        return sorted({layer.kind for layer in self.layers} - {LINEAR})

    def dims(self, depth: int, decompose: str = "all") -> list[tuple[int, ...]]:
        """The widths of each layer's factors; with `hidden` the last layer that could be split stays whole."""
        split = [k for k, layer in enumerate(self.layers) if layer.is_split]
        if decompose == "hidden" and split:
            del split[-1 if self.head is None else self.head]
        return [
            factor_dims(layer.inputs, layer.outputs, depth if k in split else 1)
            for k, layer in enumerate(self.layers)
        ]

    @property
    def last(self) -> int:
        """The place of the layer that runs last."""
        split = [k for k, layer in enumerate(self.layers) if layer.is_split]
        head = split[-1 if self.head is None else self.head] if split else len(self.layers) - 1
        return head if self.unsplit_end is None else self.unsplit_end

    def inner_dims(self, depth: int, decompose: str = "all") -> list[list[int]]:
        """The widths between the factors of each layer that is split, D - 1 of them."""
        dims = zip(self.layers, self.dims(depth, decompose), strict=True)
        return [list(widths[1:-1]) for layer, widths in dims if layer.is_split]

    def macs(self, depth: int, decompose: str = "all") -> int:
        """The multiply-accumulates of one sample, in the layers that are quantised."""
        dims = zip(self.layers, self.dims(depth, decompose), strict=True)
        return sum(layer.positions * sum(i * o for i, o in pairwise(widths)) for layer, widths in dims)

    def activation_bytes(
        self, depth: int, act_bits: int | tuple[int | None, ...] | None, decompose: str = "all"
    ) -> int:
        """The most bytes of inputs and outputs together of one factor, for one sample.

        Both are held at the `act_bits` of the layer (None: float32). Of the layers that are quantised.
        """
        most = 0
        each = of_each(act_bits, len(self.layers))
        for layer, widths, own_bits in zip(self.layers, self.dims(depth, decompose), each, strict=True):
            held = [layer.read_numbers, *(width * layer.call_positions for width in widths[1:])]
            bits = 8 * FLOAT_BYTES if own_bits is None else own_bits
            most = max(most, *(bits * (i + o) for i, o in pairwise(held)))
        return -(-most // 8)

    def sizes(
        self,
        depth: int,
        weight_bits: int | tuple[int, ...],
        act_bits: int | tuple[int | None, ...] | None,
        levels: str = "symmetric",
        granularity: str = "tensor",
        decompose: str = "all",
        overhead: str = "float32",
    ) -> Sizes:
        """The bytes after `decompose` and `quantize`; bits are those of all layers, or a tuple of those of each."""
        total = norm_sizes(self.norms, overhead, self.norm_layers, self.has_shifts)
        total += other_sizes(self.other, self.other_bytes)
        total += normalisation_sizes(self.normalised)
        each = [of_each(bits, len(self.layers)) for bits in (weight_bits, act_bits)]
        for layer, dims, own_bits, input_bits in zip(self.layers, self.dims(depth, decompose), *each, strict=True):
            if self.factor_norms:
                total += norm_sizes(sum(dims[1:-1]), overhead, len(dims) - 2, self.has_shifts)
            for k, (rows, columns) in enumerate(pairwise(dims)):
                biases = columns if k == len(dims) - 2 and layer.has_bias else 0
                steps = columns if granularity == "channel" else 1
                total += matrix_sizes(rows * columns, biases, own_bits, input_bits, levels, steps, overhead)
        return total


def mlp_structure(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    batch_norm: bool | str = False,
    normalised: int = 0,
    bias: str = "all",
) -> Structure:
    """The parts of `networks.build_mlp`. A layer before a normalisation has no bias, because the shift replaces it.

    Args:
        batch_norm: true, false, or one of `choices.NORMS`.
        normalised: as in `Structure`.
        bias: a name of `axes.BIAS`.
    """
    has_biases = bias == "all"
    pairs = list(pairwise((inputs, *hidden, classes)))
    layers = tuple(
        LayerShape(i, o, has_biases and (not batch_norm or k == len(hidden))) for k, (i, o) in enumerate(pairs)
    )
    norms = sum(hidden) if batch_norm else 0
    return Structure(
        layers,
        norms=norms,
        factor_norms=batch_norm == "factors",
        normalised=normalised,
        norm_layers=len(hidden) if batch_norm else 0,
        has_shifts=has_biases,
    )


def mlp_sizes(
    inputs: int,
    hidden: Sequence[int],
    classes: int,
    *,
    depth: int,
    weight_bits: int,
    act_bits: int | None,
    batch_norm: bool | str = False,
    **axes: str,
) -> Sizes:
    """The bytes of `networks.build_mlp` after `decompose` and `quantize`; `axes` as of `Structure.sizes`."""
    return mlp_structure(inputs, hidden, classes, batch_norm).sizes(depth, weight_bits, act_bits, **axes)
