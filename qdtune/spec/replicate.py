"""The group `replicate` of a sweep file: who gets more seeds after the search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializerFunctionWrapHandler, model_serializer, model_validator

from qdtune.messages import KeyPath, format_value
from qdtune.spec.checks import choice, measure, number, whole
from qdtune.spec.choices import FRONT_QUESTION, QUESTION_AXES
from qdtune.spec.values import Frozen, Several, cell_text

if TYPE_CHECKING:
    from qdtune.spec.sweep_file import Spec

DEFAULT_LOOKS = 4  # how many looks there are if the file names none


def _budget(value: Any) -> int | dict[str, float] | None:
    right = "a number of trainings, one per configuration and seed; or {seconds: N}; or null"
    seconds = value.get("seconds") if isinstance(value, dict) and len(value) == 1 else None
    amount = value if seconds is None else seconds
    is_number = isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount)
    if value is None or (is_number and amount > 0 and (seconds is not None or isinstance(value, int))):
        return value if seconds is None else {"seconds": float(seconds)}
    if seconds is not None:
        raise ValueError(f"seconds: {format_value(seconds)} is not allowed (a number above 0)")
    raise ValueError(f"{format_value(value)} is not allowed ({right})")


class Replicate(Frozen):
    """More seeds after the search: for the front and what is close to it, or until comparisons are decided.

    Attributes:
        front: number of seeds for each configuration on the front or close behind it, after the search
        within: largest gap to the front, in the metric, that counts as close
        until: instead of `front`: both sides of each undecided comparison get more seeds, see [Seeds where they
            decide](replication.md)
        looks: numbers of seeds at which comparisons are tested; null: 1 to 4 times the number of seeds
        alpha: chance of any wrong verdict in one question, in all looks together
        same_within: margin below which a difference is none, so that comparisons can be the same; null: none can
        budget: largest number of further trainings, or of seconds that they take
        questions: which comparisons get more seeds; null: those of the axes that vary
    """

    front: Annotated[int, whole(2, 10_000)] | None = None
    within: Annotated[float, measure()] = 0.005
    until: Annotated[str, choice(("decided",))] | None = None
    looks: Several[Annotated[int, whole(1, 10_000)]] | None = None
    alpha: Annotated[float, number("above 0, below 1", lambda x: 0 < x < 1)] = 0.05
    same_within: Annotated[float, measure()] | None = None
    budget: Annotated[Any, BeforeValidator(_budget)] = None
    questions: Several[Annotated[str, choice((*QUESTION_AXES, FRONT_QUESTION))]] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Replicate:
        if (self.front is None) == (self.until is None):
            what = "neither 'front' nor" if self.front is None else "both 'front' and"
            raise ValueError(f"has {what} 'until' (one of them)")
        if misplaced := [key for key in self._foreign_keys() if key in self.model_fields_set]:
            other = "front" if self.until else "until: decided"
            raise ValueError(f"{misplaced[0]} is a key of {other}")
        return self

    def _foreign_keys(self) -> tuple[str, ...]:
        return ("within",) if self.until else ("looks", "alpha", "same_within", "budget", "questions")

    @model_serializer(mode="wrap")
    def _without_foreign_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key not in self._foreign_keys()}

    def looks_of(self, seeds: int) -> tuple[int, ...] | None:
        """The numbers of seeds at which comparisons are tested, the first one `seeds`; None if none are."""
        if self.until is None:
            return None
        return self.looks or tuple(seeds * n for n in range(1, DEFAULT_LOOKS + 1))

    @property
    def trainings(self) -> int | None:
        """The largest number of further trainings; None if nothing limits it."""
        return self.budget if isinstance(self.budget, int) else None

    @property
    def seconds(self) -> float | None:
        """The most seconds that further trainings take; None if nothing limits them."""
        return self.budget["seconds"] if isinstance(self.budget, dict) else None


def list_replicate_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    """The path of each key that does not fit the others, and what is wrong with it."""
    wanted, count = spec.replicate, len(spec.seeds)
    if wanted is None:
        return
    if wanted.front is not None:
        if wanted.front <= count:
            what = f"{wanted.front} is not above the {count} seeds that every configuration has"
            yield ("replicate", "front"), f"{what} (or leave replicate out)"
        return
    if spec.duplicates == "replicate":
        what = "has no use with replicate.until, which decides itself who gets more seeds"
        yield ("duplicates",), f"{what} (write duplicates: resample)"
    looks = spec.looks or ()
    right = f"[{', '.join(str(count * n) for n in range(1, 5))}]"
    if looks[0] != count or len(looks) < 2:
        what = f"{cell_text(list(looks))} must begin with {count}, the number of seeds, and have two looks or more"
        yield ("replicate", "looks"), f"{what} (such as {right})"
    elif any(n % count for n in looks) or list(looks) != sorted(looks):
        what = f"{cell_text(list(looks))} must rise in multiples of {count}, the number of seeds trained together"
        yield ("replicate", "looks"), f"{what} (such as {right})"
    if wanted.same_within == 0:
        yield ("replicate", "same_within"), "0 is not allowed: no two means are equal (above 0, or null)"
    for name in wanted.questions or ():
        if name not in (*find_varying_questions(spec), FRONT_QUESTION):
            what = f"{name} has one value in this sweep, so there is nothing to compare"
            yield ("replicate", "questions"), f"{what} (leave it out, or give parameters.{name} more values)"
    if not questions_of(spec):
        what = f"no question: none of {', '.join(QUESTION_AXES)} varies"
        yield ("replicate", "questions"), f"{what} (write questions: [{FRONT_QUESTION}])"


def questions_of(spec: Spec) -> tuple[str, ...]:
    """The questions of a sweep that get more seeds until they are decided."""
    if spec.replicate is None or spec.replicate.until is None:
        return ()
    return spec.replicate.questions or tuple(find_varying_questions(spec))


def find_varying_questions(spec: Spec) -> list[str]:
    """The axes of questions that have several values in the sweep."""
    axes = spec.axes
    return [name for name in QUESTION_AXES if (choices := axes[name].choices) is None or len(choices) > 1]
