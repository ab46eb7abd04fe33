"""The description of one axis; `axes.py` declares all axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qdtune.datasets.dataset import DatasetInfo

# The stage that an axis acts in: the network before it is quantised, its float warm-up, its quantisation, or QAT.
# Configurations that differ only in the last two stages share a warm-up.
Stage = Literal["structure", "warmup", "quantisation", "training"]
LATER_STAGES = ("quantisation", "training")


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        name: its key in `parameters`, its column, the field of a `Configuration`.
        rule: the pydantic type of one value, which also writes the message about a wrong value.
        default: its value if a sweep file does not name it.
        stage: the stage that it acts in.
        column: the Arrow type of its column: `int32`, `float64` or `string`.
        text: one sentence for the docs.
        has_range: whether a sweep file may give it as a range, {min: a, max: b}.
        is_bounded: whether constraints may name it.
        range_end: the largest end of a range, if it is less than the largest value.
        home: the key of the sweep file that holds its value outside `parameters`, such as (`train`, `qat`, `lr`).
        since: the schema version of the tables that it came with.
        before: if `since` is above 1, the value of all older results. Ids and labels leave it out, so that older
            results keep both.
        is_split: whether it says how layers are split into factors. With `svd` the warm-up trains the undivided
            network, so that these axes do not change it.
        idle: values of other axes at which it has no effect.
        alias: the value with the same meaning, given all axes; None: no two values mean the same.
        misfit: why a value cannot be used on a data set, if so.
        head: the head of its column in text tables.
        title: its title in figures.
        place: its rank among the columns of text tables, from 0.
        tag: its value in labels, such as `w{}`; None: labels leave it out.
        words: its value in a sentence; empty if a sentence says nothing of it.
        outline: what remains of a value in tables without its widths. A comparison at equal bytes may pair two values
            of the same outline; None: the values must be equal.
        of_cell: its value, given the value in tables.
        asked: the words of a comparison at one value of it, such as `{} levels`; None: comparisons cover all its
            values together.
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
    outline: Callable[[Any], Any] | None = None
    of_cell: Callable[[Any], Any] = lambda cell: cell

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it may have as values; empty if its values are numbers."""
        checks = getattr(self.rule, "__metadata__", ())
        return tuple(name for check in checks for name in getattr(check.func, "names", ()))

    @property
    def phase(self) -> str | None:
        """The training phase that it is a setting of, `warmup` or `qat`; None if it belongs to no phase."""
        return self.home[1] if self.home[:1] == ("train",) else None

    @property
    def is_new(self) -> bool:
        """Whether older tables lack it."""
        return self.since > 1

    @property
    def may_be_null(self) -> bool:
        """Whether null is a value of it among others, and not only the mark of an axis without effect."""
        return self.is_new and self.before is None

    def check(self, name: str) -> None:
        """Raises ValueError if `name` is not in `names`."""
        if name not in self.names:
            raise ValueError(f"{self.name} must be one of {', '.join(self.names)}, got {name!r}")

    def said(self, value: Any) -> str:
        """The value in a sentence."""
        return self.words(value) if self.words else f"{self.name} {value}"
