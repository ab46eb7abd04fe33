"""From a sum of codes to the next code in whole numbers: multiply, add, shift, clamp.

A layer with quantised weights and inputs sums products of codes, which are whole numbers. Its float program
multiplies a sum by the steps, adds the bias, applies the normalisation and the activation, and rounds to the codes of
the next layer. A device without a floating-point unit computes `(sum * multiplier + offset) >> shift` instead.

The two are not close, they are equal. A sum has a smallest and a largest possible value. Between them the code is a
step function of the sum, because each operation of float32 is monotone. `steps` finds the
sums at which it steps, by the float program itself. `fit` finds multipliers, offsets and a shift that step at exactly
these sums. So the accuracy that was measured with the float program is that of the integer program. Jacob et al. 2018
(section 2.2) round the multiplier to 31 bits instead, which moves some codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qdtune.model.c.steps import INT32, Array, Steps, Thresholds

LARGEST_SHIFT = 40
LARGEST_TABLE = 2**8  # steps; a network of more bits in its activations computes in floats where it needs a table
FAR = 2**60
NEARLY = 2**24  # the largest multiplier of a line with exceptions: as fine as float32
LARGEST_EXCEPTIONS = 96  # of a layer, with 5 to 7 bytes each: float code takes 2 KB and more on a core without floats
# What is tried around the rounded slope. float32 rounds sums of millions, which bends the line in its last bits.
COARSE = 64  # steps
SMALLEST_MULTIPLIER = 0.75  # below it, all of them would be 0
FINE = 2**20  # multipliers below this are moved by one alone
NUDGES = (0, *(sign << k for k in range(10) for sign in (-1, 1)))


@dataclass(frozen=True)
class Requantiser:
    """The code of a sum: `scaled = sum * multiplier + offset`, and then a shift or a table.

    Without a table, `scaled >> shift` is the code, clamped from the lowest to the highest one. If there are only the
    codes -1 and 1, it is 0 or more for 1. With a table, the code is that of the last number in it which `scaled`
    reaches.

    Attributes:
        multiplier, offset: (C,).
        shift: 0 to `LARGEST_SHIFT` bits.
        to_even: whether a value halfway between two codes goes to the even one. The shift rounds to the nearest then;
            otherwise the offset holds the rounding.
        codes: (K + 1,), the first one that of a `scaled` below everything.
        table: (K,), rising; None: the shift decides.
        largest: the largest magnitude that `scaled` and what is added to it can have.
        exceptions: (E, 3), in the order of channels: the channel, a sum, and the code that it has in spite of all.
    """

    multiplier: Array
    offset: Array
    shift: int
    to_even: bool
    codes: Array
    table: Array | None
    largest: int
    exceptions: Array = field(default_factory=lambda: np.zeros((0, 3), np.int64))

    @property
    def is_wide(self) -> bool:
        """Whether 32 bits do not hold it."""
        return self.largest > INT32

    @property
    def is_binary(self) -> bool:
        """Whether the codes are -1 and 1."""
        return self.table is None and self.codes.tolist() == [-1, 1]

    def codes_of(self, sums: Array) -> Array:
        """The codes (N, C) of sums (N, C)."""
        codes = self._scale(sums)
        for channel, one, code in self.exceptions:
            codes[sums[:, channel] == one, channel] = code
        return codes

    def _scale(self, sums: Array) -> Array:
        scaled = sums * self.multiplier + self.offset
        if self.table is not None:
            return self.codes[np.searchsorted(self.table, scaled, side="right")]
        if self.to_even:
            scaled = scaled + (1 << self.shift - 1) - 1 + ((scaled >> self.shift) & 1)
        if self.is_binary:
            return np.where(scaled >= 0, 1, -1)
        return (scaled >> self.shift).clip(self.codes[0], self.codes[-1])


def fit(found: Thresholds, slope: NDArray[np.float64]) -> Requantiser | None:
    """A requantiser that steps at exactly these sums, with the smallest shift that has one; None if there is none.

    Where sums are many and codes too, float32 rounds some of them over a step. No straight line follows it there, so
    the best line gets exceptions: as a rule a few sums among ten thousands.

    Args:
        found: what it must equal.
        slope: (C,), how much larger the number that is rounded becomes with each sum times `sign`; >= 0.
    """
    steps = found.steps
    count, close = len(steps.at), None
    if not count:  # every sum has the same code, however little a sum is worth
        zeros = np.zeros(len(slope), np.int64)
        return _make(found, zeros, zeros + steps.codes[0], 0, False, None)
    if (np.diff(steps.codes) == 1).all() or steps.codes.tolist() == [-1, 1]:
        spacing = float(np.diff(steps.at.astype(np.float64)).mean()) if count > 1 else float(slope.max(initial=1.0))
        codes_per_sum = slope / max(spacing, 1e-300)
        if (line := _fit_line(found, codes_per_sum)) is not None:
            return line
        close = _fit_nearly(found, codes_per_sum)
    if count > LARGEST_TABLE or (close is not None and 2 * len(close.exceptions) <= count):
        return close
    for shift in range(LARGEST_SHIFT + 1):
        unit = 2.0**shift
        reach = max(float(slope.max(initial=0.0)), float(abs(steps.at.astype(np.float64)).max(initial=0.0))) * unit
        if reach > INT32:
            break
        table = np.rint(steps.at.astype(np.float64) * unit).astype(np.int64)
        multiplier, offset = _fit_all(found, slope * unit, table, 1)
        if offset is not None:
            return _make(found, multiplier, offset, 0, False, table)
    return close


def _fit_line(found: Thresholds, slope: NDArray[np.float64]) -> Requantiser | None:
    """The line with the smallest shift, if there is one: with one multiplier for all channels, if 32 bits hold that.

    Args:
        found: what it must equal.
        slope: (C,), how many codes a sum is worth.
    """
    shared = _fit_shift(found, slope, is_shared=True) if (slope == slope[0]).all() else None
    if shared is not None and not shared.is_wide:
        return shared
    line = _fit_shift(found, slope, is_shared=False)
    return line if line is not None and not (line.is_wide and shared) else shared


def _fit_shift(found: Thresholds, slope: NDArray[np.float64], is_shared: bool) -> Requantiser | None:
    """As `_fit_line`, for one multiplier in all channels, or one in each."""
    for shift in range(LARGEST_SHIFT + 1):
        exact = slope * 2.0**shift
        if (largest := float(exact.max(initial=0.0))) > INT32:
            break
        if largest < SMALLEST_MULTIPLIER and slope.any():
            continue
        for to_even in (False, True) if shift else (False,):
            wanted, scale = _list_wanted(found.steps, shift, to_even)
            multiplier, offset = _fit_all(found, exact, wanted, scale, is_shared)
            if offset is not None:
                return _make(found, multiplier, offset, shift, to_even, None)
    return None


def _fit_nearly(found: Thresholds, slope: NDArray[np.float64]) -> Requantiser | None:
    """The line with the fewest exceptions; None if there are too many.

    Args:
        found: what it must equal.
        slope: (C,), how many codes a sum is worth.
    """
    shift = min(LARGEST_SHIFT, int(np.log2(NEARLY / slope.max()))) if slope.any() else 0
    if shift < 1:
        return None
    multiplier = np.rint(slope * 2.0**shift).astype(np.int64)
    best: Requantiser | None = None
    for to_even in (False, True):
        wanted, scale = _list_wanted(found.steps, shift, to_even)
        low, high = _limit_offsets(found, wanted, scale, multiplier)
        offset = np.array([_choose_most(*both) for both in zip(low, high, strict=True)], np.int64)
        made = _make(found, multiplier, offset, shift, to_even, None)
        exceptions = _find_exceptions(found, wanted, scale, multiplier, offset)
        if exceptions is not None and (best is None or len(exceptions) < len(best.exceptions)):
            best = replace(made, exceptions=exceptions)
    return best


def _choose_most(low: Array, high: Array) -> int:
    """An offset between as many pairs of limits (K,) as possible, and of these a short one."""
    starts, ends = np.sort(low), np.sort(high)
    held = np.searchsorted(starts, starts, side="right") - np.searchsorted(ends, starts, side="left")
    best = starts[held.argmax()]
    return int(_choose(best, ends[np.searchsorted(ends, best)]))


def _find_exceptions(found: Thresholds, wanted: Array, scale: int, multiplier: Array, offset: Array) -> Array | None:
    """The sums at which a line is wrong, (E, 3): channel, sum, code; None if there are too many."""
    wrong: set[tuple[int, int, int]] = set()
    for channel, (m, b) in enumerate(zip(multiplier.tolist(), offset.tolist(), strict=True)):
        right, low, high = found.sums[channel], found.range.low[channel], found.range.high[channel]
        line = -((scale * b - wanted) // (scale * m)) if m else np.where(scale * b >= wanted, low, high + 1)
        for a, z in zip(np.minimum(line, right), np.maximum(line, right), strict=True):
            begin, end = max(int(a), int(low)), min(int(z), int(high) + 1)  # the line steps too early or too late
            if end - begin > LARGEST_EXCEPTIONS or len(wrong) > LARGEST_EXCEPTIONS:
                return None
            sums = np.arange(begin, end)
            codes = found.steps.codes[np.searchsorted(right, sums, side="right")]
            wrong |= set(
                zip([channel] * len(sums), (sums * found.sign[channel]).tolist(), codes.tolist(), strict=True)
            )
    return np.array(sorted(wrong), np.int64).reshape(-1, 3)


def _list_wanted(steps: Steps, shift: int, to_even: bool) -> tuple[Array, int]:
    """What must be shifted at each step (K,), at least: its number times a scale, and this scale."""
    if len(steps.codes) == 2 and steps.codes[0] == -1 and steps.codes[1] == 1:
        return np.zeros(1, np.int64), 1
    codes = steps.codes[1:]
    if not to_even:
        return codes << shift, 1
    # Halfway between two codes: the even one. Twice the value is compared, so that nothing is cut.
    return (2 * codes - 1 << shift) + 2 * (codes % 2), 2


def _make(
    found: Thresholds, multiplier: Array, offset: Array, shift: int, to_even: bool, table: Array | None
) -> Requantiser:
    reach = found.range.largest * int(multiplier.max(initial=0)) + int(abs(offset).max(initial=0)) + (1 << shift)
    return Requantiser(multiplier * found.sign, offset, shift, to_even, found.steps.codes, table, reach)


def _fit_all(
    found: Thresholds, slope: NDArray[np.float64], wanted: Array, scale: int, is_shared: bool = False
) -> tuple[Array, Array | None]:
    """Multipliers (C,) near these slopes, and offsets (C,); None for the offsets if a channel has none.

    Args:
        found: the sums at which codes step.
        slope: (C,), of what is to be multiplied and added.
        wanted: (K,): it, times `scale`, must be at least this where the step is taken, and below it before.
        scale: 1 or 2.
        is_shared: whether all channels must have the same multiplier; their slopes are equal then.
    """
    exact = np.rint(slope).astype(np.int64)
    if found.sums.shape[1] > 2 * COARSE:  # a line that misses some of the steps need not be tried on all of them
        some = slice(None, None, found.sums.shape[1] // COARSE)
        if _fit_all(replace(found, sums=found.sums[:, some]), slope, wanted[some], scale, is_shared)[1] is None:
            return exact, None
    multiplier, offset, fits = exact, np.zeros_like(exact), np.zeros(len(exact), bool)
    for nudge in NUDGES:
        if abs(nudge) > 1 and exact.max(initial=0) < FINE:
            continue
        tried = exact + nudge
        low, high = _find_offsets(found, wanted, scale, tried)
        better = ~fits & (low <= high) & (tried >= 0)
        if is_shared and not better.all():
            continue
        multiplier, offset = np.where(better, tried, multiplier), np.where(better, _choose(low, high), offset)
        fits |= better
        if fits.all():
            return multiplier, offset
    return multiplier, None


def _find_offsets(found: Thresholds, wanted: Array, scale: int, multiplier: Array) -> tuple[Array, Array]:
    """The lowest and the highest offset (C,) with which a multiplier steps where it must; low > high: there is none.

    A step at a sum that is never reached, or below the smallest one, asks for one side only.
    """
    low, high = _limit_offsets(found, wanted, scale, multiplier)
    return low.max(1, initial=-FAR), high.min(1, initial=FAR)


def _limit_offsets(found: Thresholds, wanted: Array, scale: int, multiplier: Array) -> tuple[Array, Array]:
    """The lowest and the highest offset (C, K) with which a multiplier takes each step where it must."""
    sums, m = found.sums, multiplier[:, None]
    is_reached, is_left = sums <= found.range.high[:, None], sums > found.range.low[:, None]
    low = np.where(is_reached, -((scale * m * sums - wanted) // scale), -FAR)
    high = np.where(is_left, -(-(wanted - scale * m * (sums - 1)) // scale) - 1, FAR)
    return low, high


def _choose(low: Array, high: Array) -> Array:
    """Of the offsets from low to high, 0 if it is one, else the one nearest to 0 with many zero bits at its end.

    It takes at most one bit more than the one nearest to 0, so a channel that steps nowhere widens no table.
    """
    sign = np.where(high < 0, -1, 1)
    near, far = np.where(sign < 0, -high, low).clip(0), np.where(sign < 0, -low, high)
    chosen = near
    for bits in range(1, LARGEST_SHIFT):
        rounded = -(-near >> bits) << bits
        chosen = np.where((near >> bits - 1 > 0) & (rounded <= far), rounded, chosen)
    return chosen * sign
