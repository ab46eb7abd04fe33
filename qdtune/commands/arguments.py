"""The arguments of calls from Python, each with what it accepts. All are checked here, before anything starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from qdtune.machine import expand_home
from qdtune.messages import Problem, SpecError, blame_source, format_value


@dataclass(frozen=True)
class Argument:
    """An argument of `qdtune.load`, `qdtune.run` or `LoadedRun.export`.

    Attributes:
        name: as in the call.
        right: what it must be, in words.
        accepts: whether a value is right.
    """

    name: str
    right: str
    accepts: Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_path(value: Any) -> bool:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return isinstance(text, str) and bool(text) and "\0" not in text


def _is_sweep(value: Any) -> bool:
    return isinstance(value, Mapping) or _is_path(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_key(value: Any) -> bool:
    return isinstance(value, str) and "=" not in value and all(value.split("."))


def _are_names(value: Any) -> bool:
    several = isinstance(value, list | tuple | set | frozenset) and all(map(_is_name, value))
    return several or _is_name(value)


def _are_overrides(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping) and all(map(_is_key, value)))


ARGUMENTS = (
    Argument("run", "a path or a URL", _is_path),
    Argument("sweep", "the path of a sweep file, or its content as a dict", _is_sweep),
    Argument("overrides", "a dict with dotted keys, such as {'train.qat.epochs': 3}", _are_overrides),
    Argument("runs_dir", "a path or a URL", _is_path),
    Argument("data_dir", "a path or None", lambda x: x is None or _is_path(x)),
    Argument("address", "text such as 'HOST:PORT', or None", lambda x: x is None or _is_text(x)),
    Argument("fresh", "True or False", _is_bool),
    Argument("plugins", "names of modules, such as ['mine']", _are_names),
    Argument("dashboard", "True or False", _is_bool),
    Argument("trial", "the id of a trial, or how it begins", lambda x: x is None or _is_name(x)),
    Argument("out", "the path of a folder", _is_path),
    Argument("front", "True or False", _is_bool),
    Argument("format", "the name of a format", _is_text),
    Argument("seed", "a whole number or None", lambda x: x is None or _is_integer(x)),
)


def check_arguments(given: Mapping[str, Any]) -> None:
    """Checks the types of arguments.

    Args:
        given: the name of the argument -> its value; a name that is not in `ARGUMENTS` is an option of a format.

    Raises:
        SpecError: every argument with a wrong value.
    """
    known = {one.name: one for one in ARGUMENTS}
    problems = []
    for name, value in given.items():
        one = known.get(name, Argument(name, "text", _is_text))
        if not one.accepts(value):
            problems.append(Problem(None, (), f"{name} must be {one.right}, got {_show(value)}"))
    if problems:
        raise SpecError(problems)


def _show(value: Any) -> str:
    """A value in a message, as Python writes it."""
    return repr(value) if value is None or isinstance(value, bool) else format_value(value)


def read_path(name: str, value: str | os.PathLike[str]) -> str:
    """The path that an argument holds, with its home folder.

    Raises:
        SpecError: the home folder is not known; the message names the argument.
    """
    with blame_source(name):
        return expand_home(os.fspath(value))
