"""What there is to say of one axis; `axes.py` declares them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qdtune.datasets.dataset import DatasetInfo

# What an axis takes part in: the network before it is quantised, its float warm-up, its quantisation, or QAT alone.
# Configurations that differ only in the last two share a warm-up.
Stage = Literal["structure", "warmup", "quantisation", "training"]


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: its key in `parameters`, its column, the field of a `Configuration`.
        rule: the pydantic type of one value, which also writes the message when it is broken.
        default: its value where a sweep file says nothing.
        stage: what it takes part in.
        column: the Arrow type of its column: `int32`, `float64` or `string`.
        text: one sentence for the docs.
        has_range: whether a sweep file may give it as a range, {min: a, max: b}.
        is_bounded: whether constraints may name it.
        range_end: the largest end of a range, if it is less than the largest value.
        home: the key of the sweep file that holds its value where it is no axis, such as (`train`, `qat`, `lr`).
        since: the schema version of the tables that it came with.
        before: of an axis since a later version than the first: the value that everything older had. It is left
            out of ids and labels, so that what was trained before the axis was there keeps both.
        is_split: whether it says how layers are split into factors: with `svd` the warm-up is that of the undivided
            network, whatever these are.
        idle: values of other axes at which it changes nothing.
        alias: the value that means the same, given all axes; None: each value means itself.
        misfit: why a value cannot be used on a data set, if so.
        head: of its column in text tables.
        title: in figures.
        place: its rank among the columns of text tables, from 0.
        tag: how its value stands in labels, such as `w{}`; None: not at all.
        words: its value in a sentence.
        of_cell: its value, given what stands in tables.
        asked: how a comparison says that it was made at this value, such as `{} levels`; None: comparisons are not
            made at each value of it, but over all.
    """

    name: str
    rule: Any
    default: Any
    stage: Stage
    column: Literal["int32", "float64", "string"]
    text: str
    place: int
    has_range: bool = False
    is_bounded: bool = False
    range_end: int | None = None
    home: tuple[str, ...] = ()
    since: int = 1
    before: Any = None
    is_split: bool = False
    idle: tuple[Mapping[str, Any], ...] = ()
    alias: Callable[[Mapping[str, Any]], Any] | None = None
    misfit: Callable[[Any, DatasetInfo], str | None] | None = None
    head: str = ""
    title: str = ""
    tag: str | None = None
    words: Callable[[Any], str] | None = None
    asked: str | None = None
    of_cell: Callable[[Any], Any] = lambda cell: cell

    @property
    def names(self) -> tuple[str, ...]:
        """The names that may be its value; empty where it is a number."""
        checks = getattr(self.rule, "__metadata__", ())
        return tuple(name for check in checks for name in getattr(check.func, "names", ()))

    @property
    def phase(self) -> str | None:
        """The phase of a training whose setting it is, `warmup` or `qat`; None if it is none."""
        return self.home[1] if self.home[:1] == ("train",) else None

    @property
    def is_new(self) -> bool:
        """Whether older tables do not have it."""
        return self.since > 1

    def check(self, name: str) -> None:
        """Raises ValueError where `name` is none of `names`."""
        if name not in self.names:
            raise ValueError(f"{self.name} must be one of {', '.join(self.names)}, got {name!r}")

    def said(self, value: Any) -> str:
        """The value in a sentence."""
        return self.words(value) if self.words else f"{self.name} {value}"
