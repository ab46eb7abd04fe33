"""The points of a search space: a grid in full, or points drawn in an order that is random but always the same."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

from qdtune.spec.axes import AXES
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import Values

Point = tuple[Any, ...]  # a value per axis, in the order of `AXES`

MAX_SHUFFLED_POINTS = 1_000_000  # a larger space is not shuffled as a whole; its points are drawn one by one
ALL_DRAWN_UNTIL = 5  # up to this schema version every axis takes a draw, even if it has one value
DRAWS_PER_POINT = 20  # after so many draws per configuration asked for, a large space counts as exhausted


def list_points(spec: Spec) -> Iterator[Point]:
    """The points of the space of a resolved spec, each once, before `exclude` and constraints."""
    axes = list(spec.axes.values())
    choices = [axis.choices for axis in axes]
    listed = [values for values in choices if values is not None]
    if spec.method == "grid":
        return itertools.product(*listed)
    generator = random.Random(0)
    total = math.prod(map(len, listed))
    if len(listed) == len(axes) and total <= MAX_SHUFFLED_POINTS:
        numbers = list(range(total))
        generator.shuffle(numbers)
        return (_pick_point(listed, number) for number in numbers)
    # A newer axis with one value takes no draw, so that a sweep that does not name it keeps its points.
    fixed = [
        values.choices if axis.since > ALL_DRAWN_UNTIL and values.choices and len(values.choices) == 1 else ()
        for axis, values in zip(AXES, axes, strict=True)
    ]
    draws = (
        tuple(one[0] if one else _draw_value(axis, generator) for axis, one in zip(axes, fixed, strict=True))
        for _ in range(DRAWS_PER_POINT * (spec.run_cap or 1))
    )
    return _drop_repeats(draws)


def _drop_repeats(points: Iterable[Point]) -> Iterator[Point]:
    seen = set()
    for point in points:
        if point not in seen:
            seen.add(point)
            yield point


def _pick_point(choices: list[tuple[Any, ...]], number: int) -> Point:
    """The point at place `number` of the product, without building the product."""
    point = []
    for values in reversed(choices):
        number, index = divmod(number, len(values))
        point.append(values[index])
    return tuple(reversed(point))


def _draw_value(axis: Values[Any], generator: random.Random) -> Any:
    values = axis.choices
    if values is not None:
        return generator.choice(values)
    low, high = axis.min, axis.max  # type: ignore[attr-defined]
    if axis.distribution == "log_uniform":  # type: ignore[attr-defined]
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return round_to_six_digits(value, low, high)


def round_to_six_digits(value: float, low: float, high: float) -> float:
    """The value at six digits, within its range.

    The last bit of `exp` differs between machines, and a `trial_id` must not.
    """
    return min(max(low, float(f"{value:.6g}")), high)
