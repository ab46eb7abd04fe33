"""The values of one axis, and the types that the groups of a sweep file share."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from qdtune.messages import format_value
from qdtune.spec.checks import choice, number, whole

T = TypeVar("T")
NO_WIDTHS = "none"  # hidden widths of a network without hidden layers, in tables


def cell_text(value: object) -> str:
    """A value of an axis as text in tables: (64, 32) is 64-32, and () is none."""
    return (
        "-".join(map(str, value)) or NO_WIDTHS
        if isinstance(value, tuple)
        else "null"
        if value is None
        else str(value)
    )


def as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{cell_text(value)} appears twice")
        seen.add(value)
    return values


def some(right: str) -> AfterValidator:
    """A list with a value; `right` is what to write instead of an empty one."""

    # pydantic's min_length counts only the items without a mistake and would report a second mistake.
    def check(values: tuple[T, ...]) -> tuple[T, ...]:
        if not values:
            raise ValueError(f"empty list ({right})")
        return values

    return AfterValidator(check)


_ONE = some("give at least one value")
Distinct = Annotated[tuple[T, ...], AfterValidator(_distinct)]
Some = Annotated[tuple[T, ...], _ONE]
Several = Annotated[tuple[T, ...], _ONE, AfterValidator(_distinct)]


Width = Annotated[int, whole(1, 65_536)]
Widths = Annotated[tuple[Width, ...], BeforeValidator(as_list)]
Rate = Annotated[float, number("a finite number above 0", lambda x: x > 0)]


class Frozen(BaseModel):
    """A group of keys; an unknown key is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Values(Frozen, Generic[T]):
    """The values of one axis: written {value: x} or {values: [x, y]}."""

    values: Several[T]

    @model_validator(mode="before")
    @classmethod
    def _one_value(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError(f"{format_value(data)} is not an axis (write {{value: x}} or {{values: [x, y]}})")
        if {"min", "max", "distribution"} & {*data} and "min" not in cls.model_fields:
            raise ValueError("a range is not possible on this axis (write {value: x} or {values: [x, y]})")
        if "value" not in data:
            return data
        if "values" in data:
            raise ValueError("has both 'value' and 'values' (one of them)")
        return {key: value for key, value in data.items() if key != "value"} | {"values": [data["value"]]}

    @property
    def choices(self) -> tuple[T, ...] | None:
        """Every value that can occur; None if the values cannot be listed."""
        return self.values

    def holds(self, value: T) -> bool:
        """Whether `value` can occur."""
        return value in self.values


class NumberValues(Values[T], Generic[T]):
    """Values that may also be a range: {min: a, max: b, distribution: uniform | log_uniform | int_uniform}.

    A range of a whole-number axis holds whole numbers, both ends included.
    """

    values: Several[T] | None = None  # type: ignore[assignment]  # None for a range
    min: T | None = None
    max: T | None = None
    distribution: Annotated[str, choice(("uniform", "log_uniform", "int_uniform"))] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> NumberValues[T]:
        ends = (self.min, self.max)
        if self.values is not None:
            if ends != (None, None) or self.distribution:
                raise ValueError("has both values and a range (one of them)")
        elif self.min is None or self.max is None:
            raise ValueError("has no values (write {value: x}, {values: [x, y]} or {min: a, max: b})")
        elif not self.min < self.max:  # type: ignore[operator]
            raise ValueError(f"min {self.min} is not below max {self.max}")
        elif self.distribution == ("log_uniform" if isinstance(self.min, int) else "int_uniform"):
            kind = "whole" if isinstance(self.min, int) else "real"
            raise ValueError(f"{self.distribution} is not possible on an axis of {kind} numbers")
        return self

    @property
    def choices(self) -> tuple[T, ...] | None:
        if self.values is None and isinstance(self.min, int):
            return tuple(range(self.min, self.max + 1))  # type: ignore[arg-type, operator]
        return self.values

    def holds(self, value: T) -> bool:
        if self.values is not None:
            return value in self.values
        return value is not None and self.min <= value <= self.max  # type: ignore[operator]
