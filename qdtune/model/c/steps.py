"""Step functions: where the codes of numbers step, and the whole sums at which they do, by bisection.

The functions are those of the float program. Each of its operations is monotone in float32, so bisection finds every
step exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.int64]
Floats = NDArray[np.float32]
INT32 = 2**31 - 1
LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class SumRange:
    """The smallest and the largest sum of each channel.

    Attributes:
        low, high: (C,).
    """

    low: Array
    high: Array

    @property
    def largest(self) -> int:
        """The largest magnitude of any sum."""
        return int(max(abs(self.low).max(initial=0), abs(self.high).max(initial=0)))


def range_of_sums(codes: Array, low: int, high: int, has_zeros: bool = False) -> SumRange:
    """The range of the sums of products of codes.

    Args:
        codes: of weights, (C, N): those that are summed in each channel.
        low, high: the lowest and the highest code of the inputs.
        has_zeros: whether an input may be 0 as well, as beyond the end of an image; then no part of a sum is beyond
            the range either.
    """
    ends = [codes * low, codes * high] + ([codes * 0] if has_zeros else [])
    return SumRange(np.minimum.reduce(ends).sum(1), np.maximum.reduce(ends).sum(1))


@dataclass(frozen=True)
class Steps:
    """A step function of one number.

    Attributes:
        at: (K,) float32, rising: from each of these numbers on, another code.
        codes: (K + 1,): below the first of them, from the first on, and so on.
    """

    at: Floats
    codes: Array

    def between(self, first: int, last: int) -> Steps:
        """The steps from number `first` to before number `last`."""
        return Steps(self.at[first:last], self.codes[first : last + 1])


@np.errstate(over="ignore", invalid="ignore")  # the largest floats are tried
def find_steps(code_of: Callable[[Floats], Array], bends: Sequence[float] = ()) -> Steps:
    """The steps of a function of one float32, by bisection over all of them.

    Args:
        code_of: numbers (N,) -> codes (N,).
        bends: where it turns from falling to rising or back.
    """
    at, codes = [], [code_of(np.array([-LARGEST_FLOAT], np.float32))]
    for start, end in pairwise([-LARGEST_FLOAT, *bends, LARGEST_FLOAT]):
        first, last = code_of(np.array([start, end], np.float32))
        sign = 1 if last >= first else -1
        levels = np.unique(np.arange(first, last + sign, sign) * sign)[1:]  # what is reached, times the sign
        low, high = (np.full(len(levels), _order(np.array([x], np.float32))[0]) for x in (start, end))
        while (high - low > 1).any():
            middle = (low + high) // 2
            is_past = code_of(_unorder(middle)) * sign >= levels
            low, high = np.where(is_past, low, middle), np.where(is_past, middle, high)
        places, which = np.unique(high, return_index=True)  # a binary code steps by two at once
        at.append(_unorder(places))
        codes.append(levels[np.append(which[1:], len(levels)) - 1] * sign if len(levels) else levels)
    return Steps(np.concatenate(at).astype(np.float32), np.concatenate(codes).astype(np.int64))


def _order(numbers: Floats) -> Array:
    """Whole numbers in the order of float32 numbers."""
    bits = numbers.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & INT32), bits)


def _unorder(places: Array) -> Floats:
    """The numbers of which these are the places in `_order`."""
    sign = np.where(places < 0, -1, 1).astype(np.float32)
    return np.copysign(abs(places).astype(np.int32).view(np.float32), sign)


@dataclass(frozen=True)
class Thresholds:
    """The sums at which codes step.

    Attributes:
        sums: (C, K): step k is taken where a sum times `sign` is at least `sums[:, k]`.
        sign: (C,), 1; or -1 where the number that is rounded falls as sums rise.
        range: of the sums times `sign`.
        steps: those that some channel takes and some does not always take.
    """

    sums: Array
    sign: Array
    range: SumRange
    steps: Steps


def find_thresholds(value_of: Callable[[Array], Floats], sums: SumRange, steps: Steps) -> Thresholds:
    """The sums at which a monotone function of them reaches the steps, by bisection.

    Args:
        value_of: sums (N, C) -> float32 (N, C), in each channel rising or falling.
        sums: the range of each channel.
        steps: of the values.
    """
    first, last = (value_of(end[None])[0] for end in (sums.low, sums.high))
    sign = np.where(last < first, -1, 1)
    turned = SumRange(np.where(sign < 0, -sums.high, sums.low), np.where(sign < 0, -sums.low, sums.high))
    wanted = steps.at[:, None]
    low = np.repeat(turned.low[None] - 1, len(wanted), 0)  # below the step, or beyond the range
    high = np.repeat(turned.high[None] + 1, len(wanted), 0)  # at least the step, or beyond the range
    while (high - low > 1).any():
        middle = (low + high) // 2
        is_up = value_of((middle * sign).clip(sums.low, sums.high)) >= wanted
        is_open = high - low > 1
        low, high = np.where(is_open & ~is_up, middle, low), np.where(is_open & is_up, middle, high)
    begin = int((high <= turned.low).all(1).sum())
    end = len(high) - int((high > turned.high).all(1).sum())
    return Thresholds(high[begin:end].T.copy(), sign, turned, steps.between(begin, max(begin, end)))
