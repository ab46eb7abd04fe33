"""How numbers that are no weights are stored: step sizes, biases, and the scales and shifts of normalisations.

A factor is a step size or a scale, a term is a bias or a shift. `float32` and `float16` hold both as such numbers.
With `int8` and `pow2`, a term is a whole number from -127 to 127 times a unit. The terms of a layer share their unit,
the smallest power of two that reaches the largest of them. Factors are float16 with `int8`. With `pow2` each is the
nearest power of two, by its logarithm, so a network on quantised inputs needs nothing but sums of whole numbers and
shifts of bits.

Training computes with the rounded numbers, and their gradient is that of the exact ones (straight-through). All of
this is arithmetic of float32, because a compiler drops a change of type to float16 and back.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qdtune.reader import EXPONENT_OFFSET
from qdtune.spec.axes import OVERHEAD

FLOAT32, FLOAT16, INT8, POW2 = OVERHEAD.names
LARGEST_HALF, SMALLEST_HALF = 65504.0, 2.0**-24
SMALLEST_EXPONENT, LARGEST_EXPONENT = -126, 127  # of float32
LARGEST_TERM = 127
_BY_TYPE = {"uint8": POW2, "int8": INT8, "float16": FLOAT16}  # the first one that a layer has tells


def round_factor(x: Tensor, overhead: str) -> Tensor:
    """Step sizes or scales of any shape as they are stored, with the gradient of x; with `pow2` x >= 0."""
    if overhead == FLOAT32:
        return x
    exact = x.detach()
    rounded = torch.exp2(_exponents(exact)) if overhead == POW2 else _round_half(exact)
    return pass_gradient(rounded, x)


def round_terms(x: Tensor, overhead: str) -> Tensor:
    """The biases or shifts of one layer, (O,), as they are stored, with the gradient of x."""
    if overhead == FLOAT32:
        return x
    exact = x.detach()
    if overhead == FLOAT16:
        return pass_gradient(_round_half(exact), x)
    unit, numbers = _count_units(exact)
    return pass_gradient(numbers * torch.exp2(unit), x)


def pass_gradient(rounded: Tensor, x: Tensor) -> Tensor:
    """`rounded` to the last bit, with the gradient of x."""
    return rounded.detach() + (x - x.detach())


def pack_factor(x: Tensor, overhead: str) -> Tensor:
    """Step sizes or scales in the type that is stored: float32, float16, or uint8 as `reader.read_number` has it.

    Args:
        x: of `round_factor`.
        overhead: a name of `axes.OVERHEAD`.
    """
    if overhead == FLOAT32:
        return x
    if overhead == POW2:
        return (_exponents(x) + EXPONENT_OFFSET).to(torch.uint8)
    return _round_half(x).half()


def pack_terms(x: Tensor, overhead: str) -> Tensor:
    """The biases or shifts (O,) of one layer in the type that is stored: float32, float16, or int8 (1 + O,).

    Args:
        x: exact, or of `round_terms`.
        overhead: a name of `axes.OVERHEAD`.
    """
    if overhead == FLOAT32:
        return x
    if overhead == FLOAT16:
        return _round_half(x).half()
    unit, numbers = _count_units(x)
    return torch.cat([unit[None], numbers]).to(torch.int8)


def overhead_of(types: Iterable[str]) -> str:
    """A name of `axes.OVERHEAD` with which the numbers of a layer are packed as in arrays of these types."""
    found = set(types)
    return next((name for one, name in _BY_TYPE.items() if one in found), FLOAT32)


def _round_half(x: Tensor) -> Tensor:
    """The nearest float16, halves to even; numbers beyond the largest become the largest."""
    unit = torch.exp2(torch.log2(x.abs()).floor().clamp(-14, 15) - 10)
    return (torch.round(x / unit) * unit).clamp(-LARGEST_HALF, LARGEST_HALF)


def _exponents(x: Tensor) -> Tensor:
    """Those of the nearest powers of two; the smallest one for 0."""
    return torch.log2(x).round().clamp(SMALLEST_EXPONENT, LARGEST_EXPONENT)


def _count_units(x: Tensor) -> tuple[Tensor, Tensor]:
    """The exponent of the unit that terms (O,) share, 0-dim, and how many units each of them is."""
    reach = torch.log2(x.abs().amax() / LARGEST_TERM).ceil()
    unit = reach.clamp(SMALLEST_EXPONENT, LARGEST_EXPONENT)
    return unit, torch.round(x / torch.exp2(unit)).clamp(-LARGEST_TERM, LARGEST_TERM)
