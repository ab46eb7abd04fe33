"""What is said to the user: the words for what was refused, and how values, counts and paths are written.

A `Problem` is one such sentence with its place; `SpecError` carries all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

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
        parts = (str(self.place or ""), format_path(self.path), self.what)
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


def user_error(what: str, *path: str | int) -> SpecError:
    """The error for one mistake of no known place; `path` is the key to blame, if any."""
    return SpecError([Problem(None, path, what)])


@contextmanager
def blame(source: str) -> Iterator[None]:
    """Mistakes of no known place are those of `source`: a file, or an option."""
    try:
        yield
    except SpecError as error:
        raise SpecError([replace(p, place=p.place or Place(source)) for p in error.problems]) from None


def one_line(text: str) -> str:
    """`text` with control characters, line ends and lone surrogates written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """`text` with a space for every control character but the line end."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def format_value(value: object) -> str:
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


def format_path(path: KeyPath) -> str:
    """A key path as users write it: `parameters.depth.values[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{one_line(part)[:60]}"
    return text.removeprefix(".")


def describe_unknown(noun: str, name: str, known: Collection[str]) -> str:
    """The message for a `name` that is none of the `known` ones, with the nearest of them."""
    near = difflib.get_close_matches(name, known, n=1) if len(name) <= 64 else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {noun}{format_value(name)}{hint} ({', '.join(known)})"


def format_count(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def format_percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A fraction as per cent, with half the width of its interval where there is one."""
    if value is None:
        return "-"
    return f"{value:.2%}" if low is None or high is None else f"{value:.2%} ± {100 * (high - low) / 2:.2f}"
