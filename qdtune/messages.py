"""Messages to the user: errors with their places, and the format of values, counts and key paths.

A `Problem` is one mistake with its place; a `SpecError` holds all mistakes.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import NamedTuple

MAX_LINES = 20  # of an error
KeyPath = tuple[str | int, ...]
_is_called_from_python = ContextVar("_is_called_from_python", default=False)


class Place(NamedTuple):
    """The place of a key: a file with line and column from 1 (0: unknown), or a command line option."""

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
        return f"error: {self.text}"

    @property
    def text(self) -> str:
        """The line without the word `error`."""
        parts = (str(self.place or ""), format_path(self.path), self.what)
        return one_line(": ".join(part for part in parts if part))


class SpecError(ValueError):
    """The mistakes of the user. `problems` holds every mistake; `str` is at most 20 lines, ready to print.

    They begin with `error: `, except in a call from Python, where the traceback has the name of the exception there.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)
        self.problems = tuple(problems)
        self.start = "" if _is_called_from_python.get() else "error: "

    def __str__(self) -> str:
        lines = [f"{self.start}{problem.text}" for problem in self.problems[:MAX_LINES]]
        more = len(self.problems) - len(lines)
        return "\n".join([*lines, f"{self.start}... and {more} more"] if more else lines)


def user_error(what: str, *path: str | int) -> SpecError:
    """The error for one mistake without a known place; `path` is the key at fault, if any."""
    return SpecError([Problem(None, path, what)])


@contextmanager
def blame_source(source: str) -> Iterator[None]:
    """Gives mistakes of its block that have no place the place `source`: a file or an option."""
    try:
        yield
    except SpecError as error:
        raise SpecError([replace(p, place=p.place or Place(source)) for p in error.problems]) from None


# Options of the commands whose argument in Python has another name, or has a value.
PYTHON_NAMES = {
    "--allow-plugin": "plugins",
    "--set": "overrides",
    "--fresh": "fresh=True",
    "--no-dashboard": "dashboard=False",
}


@contextmanager
def python_names() -> Iterator[None]:
    """Names options as arguments of a call in Python in all messages that its block makes; see `name_option`."""
    token = _is_called_from_python.set(True)
    try:
        yield
    finally:
        _is_called_from_python.reset(token)


def name_option(flag: str, value: str | None = None) -> str:
    """An option of a command as the user writes it, with a value if one is given.

    It is `--runs-dir` or `--runs-dir here`, or `runs_dir` or `runs_dir='here'` in a call from Python.
    """
    if not _is_called_from_python.get():
        return flag if value is None else f"{flag} {value}"
    name = PYTHON_NAMES.get(flag, flag.removeprefix("--").replace("-", "_"))
    return name if value is None else f"{name}={value!r}"


def name_caller() -> str:
    """What the user wrote: a `command`, or a `call` in Python."""
    return "call" if _is_called_from_python.get() else "command"


def one_line(text: str) -> str:
    """The text with control characters, line ends and lone surrogates as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """The text with spaces instead of control characters; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def format_value(value: object) -> str:
    """A value for a message: on one line and short."""
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
    """A key path in the notation of users: `parameters.depth.values[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{one_line(part)[:60]}"
    return text.removeprefix(".")


def find_nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that a wrong one may mean; None if none is near."""
    spelled = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1) if len(name) <= 64 else []
    return spelled[near[0]] if near else None


def describe_unknown(noun: str, name: str, known: Collection[str], hint: str = "") -> str:
    """The message for a `name` that is not in `known`, with a `hint`, or else with the nearest known name."""
    near = None if hint else find_nearest(name, known)
    hint = f"; did you mean {near!r}?" if near else f"; {hint}" if hint else ""
    return f"unknown {noun}{format_value(name)}{hint} ({', '.join(known)})"


def list_first(names: Sequence[str], most: int = 5) -> str:
    """`a, b` or, if there are more than `most`, `a, b and 7 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def format_count(n: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
