"""Checks of single values in a sweep file.

Each function (`whole`, `number`, `measure`, `choice`, `matching`, `share`, `flag`) returns a pydantic validator,
which returns a value in canonical form or says what is wrong with it and, in brackets, what is right. They are
nouns, because they stand in types: `Annotated[int, whole(1, 64)]`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from pydantic import BeforeValidator, ValidationInfo

from qdtune.messages import describe_unknown, format_value


def _is_not(noun: str, value: object, right: str) -> ValueError:
    if value is None:
        return ValueError(f"no value ({right})")
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,40}(\.\d*)?([eE][-+]?\d{1,4})?", value):
        return ValueError(f"{format_value(value)} is text (write {value} without quotes)")
    return ValueError(f"{format_value(value)} is not {noun} ({right})")


def whole(low: int, high: int, *also: int) -> BeforeValidator:
    """A whole number in [low, high], or one of `also`; 4.0 passes as 4."""
    numbers = f"it must be {low}" if low == high else f"a whole number, {low:,} to {high:,}"
    right = " or ".join([numbers, *map(str, also)])

    def check(value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _is_not("a whole number", value, right)
        if not low <= value <= high and value not in also:
            raise ValueError(f"{format_value(value)} is not allowed ({right})")
        return value

    return BeforeValidator(check)


def number(right: str, holds: Callable[[float], bool]) -> BeforeValidator:
    """A finite number for which `holds` is true, as a float."""

    return BeforeValidator(lambda value: _read_number(value, right, holds))


def _read_number(value: object, right: str, holds: Callable[[float], bool]) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _is_not("a number", value, right)
    if not math.isfinite(value) or not holds(value):
        raise ValueError(f"{format_value(value)} is not allowed ({right})")
    return float(value)


def measure() -> BeforeValidator:
    """A number of 0 or more in the unit of the metric that judges, as a float; at most 1 if that is a fraction.

    The context of the validation holds the `metric`. Without it, as for a spec that was checked before, any number of
    0 or more passes.
    """

    def check(value: object, info: ValidationInfo) -> float:
        metric = (info.context or {}).get("metric")
        if metric is None:
            right = "an accuracy, 0 to 1; 0 or more if `data.metric` is no fraction"
        elif metric.is_fraction:
            right = f"an {metric.name}, 0 to 1"
        else:
            right = f"0 or more, in the unit of {metric.name}"
        most = 1.0 if metric is not None and metric.is_fraction else math.inf
        return _read_number(value, right, lambda x: 0 <= x <= most)

    return BeforeValidator(check)


def choice(known: Iterable[str]) -> BeforeValidator:
    """One of the `known` names."""
    names = tuple(known)

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise _is_not("a name", value, ", ".join(names))
        if value not in names:
            raise ValueError(describe_unknown("", value, names))
        return value

    check.names = names  # type: ignore[attr-defined]  # `Axis.names` lists them
    return BeforeValidator(check)


def matching(right: str, read: Callable[[str], str | None]) -> BeforeValidator:
    """Text in the form that `read` returns; it is wrong if `read` returns None."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise _is_not("text", value, f"in quotes: {right}")
        text = read(value)
        if text is None:
            raise ValueError(f"{format_value(value)} is not allowed ({right})")
        return text

    return BeforeValidator(check)


def share(right: str, least: int, words: Sequence[str] = ()) -> BeforeValidator:
    """A resource as Ray counts it: a fraction in whole 1/10000ths up to 1, or a whole number; '1/3' is 0.3333.

    One of the `words`, if there are any, may replace it.
    """

    def check(value: object) -> float | str:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and (ratio := re.fullmatch(r"(\d{1,6}) */ *([1-9]\d{0,5})", value)):
            units = 10_000 * int(ratio[1]) // int(ratio[2])
        elif not isinstance(value, int | float) or isinstance(value, bool):
            raise _is_not("a number", value, right)
        elif not math.isfinite(value) or not 0 <= value <= 10_000 or 0 < value < 0.0001:
            raise ValueError(f"{format_value(value)} is not allowed ({right})")
        else:
            units = math.floor(value * 10_000 + 1e-6)  # truncated, because 3 x 0.3334 would not fit on one GPU
        if units < least or (units > 10_000 and units % 10_000):
            raise ValueError(f"{format_value(value)} is not allowed ({right})")
        return units / 10_000

    return BeforeValidator(check)


def flag(words: Sequence[str] = ()) -> BeforeValidator:
    """True or false as YAML has them, not 1 or "yes"; or one of the `words`."""
    right = " or ".join(["true", "false", *words])

    def check(value: object) -> bool | str:
        if not isinstance(value, bool) and value not in words:
            raise _is_not("a switch", value, right)
        return value  # type: ignore[return-value]

    return BeforeValidator(check)
