"""The layers of a network as matrices, before and after they are split, and what follows for the whole network.

A layer kind of `model/layers` describes its layers so; the arithmetic is the same for all kinds. The bytes of one
matrix are in `sizes`.

Alphabet: I in, O out, D depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.sizes import (
    FLOAT_BYTES,
    Sizes,
    factor_dims,
    matrix_sizes,
    norm_sizes,
    normalisation_sizes,
    other_sizes,
)

C_ALIGNMENT = 4  # of the buffers of exported C, in bytes
LINEAR = "linear"  # the first layer kind


def of_each(bits: Any, layers: int) -> Sequence[Any]:
    """The bits of each layer, given those of all, or a tuple of those of each.

    Raises:
        ValueError: the tuple is that of another number of layers.
    """
    found = bits if isinstance(bits, tuple) else (bits,) * layers
    if len(found) != layers:
        raise ValueError(f"there must be bits for each of {layers} layers, got {found}")
    return found


def bytes_of_code(act_bits: int | None) -> int:
    """The bytes that hold a code of these bits in C; those of a float if there is none."""
    return FLOAT_BYTES if act_bits is None else 1 if act_bits <= 8 else 2


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
    def convolves(self) -> bool:
        """Whether a layer is a convolution."""
        return any(layer.kind.startswith("conv") for layer in self.layers)

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

    def ram_bytes(
        self,
        depth: int,
        weight_bits: int | tuple[int, ...],
        act_bits: int | tuple[int | None, ...] | None,
        decompose: str = "all",
        has_class: bool = True,
    ) -> int:
        """The bytes of the static buffers of the network as C: see `model/c`.

        One buffer holds the inputs and the outputs of a factor, each number in 1, 2 or 4 bytes. Another one holds the
        sums of one channel of a convolution. Layers run in the order of modules, normalisations and pools with them.
        A program that finds classes (`has_class`) from floats holds its outputs.
        """
        held, plane, count = list[int](), 0, len(self.layers)
        each = zip(self.layers, self.dims(depth, decompose), of_each(act_bits, count), strict=True)
        for layer, widths, own_bits in each:
            numbers = (layer.read_numbers, *(width * layer.call_positions for width in widths[1:-1]))
            held += [-(-n * bytes_of_code(own_bits) // C_ALIGNMENT) * C_ALIGNMENT for n in numbers]
            plane = max(plane, 0 if layer.kind == LINEAR else C_ALIGNMENT * layer.call_positions)
        both = max(a + b for a, b in pairwise((0, *held, 0)))
        has_codes = of_each(act_bits, count)[-1] is not None and of_each(weight_bits, count)[-1] != FLOAT_BITS
        return both + plane + (FLOAT_BYTES * self.layers[-1].outputs if has_class and not has_codes else 0)

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
