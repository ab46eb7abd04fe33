"""Rules for single values, and the words for what they refuse.

A rule (`whole`, `number`, `choice`, `matching`, `share`) is a pydantic validator that returns a value in canonical
form, or says what is wrong with it and, in brackets, what would be right. A `Problem` is one such sentence with its
place; `SpecError` carries all of them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import BeforeValidator

MAX_LINES = 20

KeyPath = tuple[str | int, ...]


class Place(NamedTuple):
    """Where a key was written: a file with line and column from 1 (0: not known), or a command line option."""

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return ":".join([one_line(self.source), *[str(n) for n in self[1:] if n]])


@dataclass(frozen=True)
class Problem:
    """One mistake of the user; `str` is the line to print."""

    place: Place | None
    path: KeyPath
    what: str

    def __str__(self) -> str:
        parts = (str(self.place or ""), dotted(self.path), self.what)
        return one_line("error: " + ": ".join(part for part in parts if part))


class SpecError(ValueError):
    """What the user got wrong. `problems` holds every mistake; `str` is at most 20 lines, ready to print."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:MAX_LINES]]
        more = len(self.problems) - len(lines)
        return "\n".join([*lines, f"error: ... and {more} more"] if more else lines)


def mistake(what: str, *path: str | int) -> SpecError:
    """The error for one mistake of no known place; `path` is the key to blame, if any."""
    return SpecError([Problem(None, path, what)])


def one_line(text: str) -> str:
    """`text` with control characters, line ends and lone surrogates written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """`text` with a space for every control character but the line end."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def shown(value: object) -> str:
    """A value as it stands in a message: on one line and short, whatever the user wrote."""
    if value is None:
        return "no value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def dotted(path: KeyPath) -> str:
    """A key path as users write it: `parameters.depth.values[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{one_line(part)[:60]}"
    return text.removeprefix(".")


def unknown(noun: str, name: str, known: Collection[str]) -> str:
    """The message for a `name` that is none of the `known` ones, with the nearest of them."""
    near = difflib.get_close_matches(name, known, n=1) if len(name) <= 64 else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {noun}{shown(name)}{hint} ({', '.join(known)})"


def _is_not(noun: str, value: object, right: str) -> ValueError:
    if value is None:
        return ValueError(f"no value ({right})")
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,40}(\.\d*)?([eE][-+]?\d{1,4})?", value):
        return ValueError(f"{shown(value)} is text (write {value} without quotes)")
    return ValueError(f"{shown(value)} is not {noun} ({right})")


def whole(low: int, high: int, *also: int) -> BeforeValidator:
    """A whole number in [low, high], or one of `also`; 4.0 passes as 4."""
    right = " or ".join([f"a whole number, {low:,} to {high:,}", *map(str, also)])

    def check(value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _is_not("a whole number", value, right)
        if not low <= value <= high and value not in also:
            raise ValueError(f"{shown(value)} is not allowed ({right})")
        return value

    return BeforeValidator(check)


def number(right: str, holds: Callable[[float], bool]) -> BeforeValidator:
    """A finite number for which `holds` is true, as a float."""

    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _is_not("a number", value, right)
        if not math.isfinite(value) or not holds(value):
            raise ValueError(f"{shown(value)} is not allowed ({right})")
        return float(value)

    return BeforeValidator(check)


def choice(known: Iterable[str]) -> BeforeValidator:
    """One of the `known` names."""
    names = tuple(known)

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise _is_not("a name", value, ", ".join(names))
        if value not in names:
            raise ValueError(unknown("", value, names))
        return value

    return BeforeValidator(check)


def matching(right: str, read: Callable[[str], str | None]) -> BeforeValidator:
    """Text in the form that `read` returns; None from `read` means that it is wrong."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise _is_not("text", value, f"in quotes: {right}")
        text = read(value)
        if text is None:
            raise ValueError(f"{shown(value)} is not allowed ({right})")
        return text

    return BeforeValidator(check)


def share(right: str, least: int, words: Sequence[str] = ()) -> BeforeValidator:
    """A resource as Ray counts it: a fraction in whole 1/10000ths up to 1, or a whole number; '1/3' is 0.3333.

    Where `words` are given, one of them may stand for it.
    """

    def check(value: object) -> float | str:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and (ratio := re.fullmatch(r"(\d{1,6}) */ *([1-9]\d{0,5})", value)):
            units = 10_000 * int(ratio[1]) // int(ratio[2])
        elif not isinstance(value, int | float) or isinstance(value, bool):
            raise _is_not("a number", value, right)
        elif not math.isfinite(value) or not 0 <= value <= 10_000 or 0 < value < 0.0001:
            raise ValueError(f"{shown(value)} is not allowed ({right})")
        else:
            units = math.floor(value * 10_000 + 1e-6)  # truncated, for 3 x 0.3334 would not fit on one GPU
        if units < least or (units > 10_000 and units % 10_000):
            raise ValueError(f"{shown(value)} is not allowed ({right})")
        return units / 10_000

    return BeforeValidator(check)


def flag(words: Sequence[str] = ()) -> BeforeValidator:
    """True or false, and nothing that could be taken for it; where `words` are given, or one of them."""
    right = " or ".join(["true", "false", *words])

    def check(value: object) -> bool | str:
        if not isinstance(value, bool) and value not in words:
            raise _is_not("a switch", value, right)
        return value  # type: ignore[return-value]

    return BeforeValidator(check)
