"""The user's own code: the only place that imports a module named by a sweep file.

A sweep file may name functions, but a name alone imports nothing. Only modules that the user allows on the command
line (`--allow-plugin`) are imported, by exactly that name, and the hash of their source is recorded. A worker gets
the grant of its driver, and refuses a source that has changed since.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from qdtune.messages import Problem, SpecError, format_value, name_caller, name_option, one_line, user_error

MAX_ERROR_CHARS = 300  # of an error that the user's code raises


class PluginError(ValueError):
    """The user's code cannot be used.

    Attributes:
        faults: what is wrong, a line each; `str` is the first one.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(faults[0])
        self.faults = faults


class Grant(NamedTuple):
    """The modules that a process may import, by their full names, and the folders to find them in."""

    modules: tuple[str, ...]
    folders: tuple[str, ...]


class Source(NamedTuple):
    """An imported module: its name, its file and the sha256 of the file."""

    module: str
    path: str
    sha256: str


NO_GRANT = Grant((), ())
_grants: list[Grant] = []
_sources: dict[str, Source] = {}


def allow(grant: Grant) -> None:
    """Lets this process import the modules of a grant; it imports nothing yet.

    The folders are searched last, so that a file in one of them never shadows an installed module.
    """
    if grant not in _grants:
        _grants.append(grant)
        sys.path.extend(folder for folder in grant.folders if folder not in sys.path)


def current_grant() -> Grant:
    """Everything that this process may import; its workers get the same grant."""
    return Grant(*(tuple(dict.fromkeys(name for grant in _grants for name in grant[i])) for i in range(2)))


def sources() -> list[Source]:
    """The modules that `load_function` has imported."""
    return list(_sources.values())


def check_modules(modules: Sequence[str]) -> None:
    """Raises SpecError if what the user allows on the command line cannot be the name of a module."""
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            what = f"{name_option('--allow-plugin')} must be the name of a module, such as mine or package.mine"
            raise user_error(f"{what}, got {format_value(module)}")


def permit(factories: Mapping[str, str], modules: Sequence[str], folders: Sequence[Path]) -> None:
    """Allows the modules of the functions that a sweep file names.

    Args:
        factories: group of the sweep file -> the function that it names, `package.module:function`.
        modules: the modules that the user allows on the command line.
        folders: where to find them; searched last.

    Raises:
        SpecError: the file names other modules.
    """
    needed = {group: factory.partition(":")[0] for group, factory in factories.items()}
    where = f"is code of your own: it is imported only where the {name_caller()} says"
    problems = [
        Problem(None, (group, "factory"), f"{factories[group]} {where} {name_option('--allow-plugin', module)}")
        for group, module in needed.items()
        if module not in modules
    ]
    if problems:
        raise SpecError(problems)
    allow(Grant(tuple(needed.values()), tuple(str(folder.resolve()) for folder in folders)))


def load_function(factory: str, sha256: str | None = None) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Args:
        factory: a function of an allowed module.
        sha256: the hash that its source must have; None accepts any.

    Raises:
        PluginError: the module is not allowed, cannot be imported, lacks the function, or has another hash.
    """
    module, _, name = factory.partition(":")
    if module not in current_grant().modules:
        raise PluginError(f"{module} was not allowed by {name_option('--allow-plugin')}")
    with explain_errors(f"{module} cannot be imported"):
        found = importlib.import_module(module)
        path = getattr(found, "__file__", None)
        if path is None:
            raise PluginError(f"{module} has no source file, so nothing could tell whether it changes")
        if module not in _sources:
            _sources[module] = Source(module, path, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    is_now = _sources[module].sha256
    if sha256 not in (None, is_now):
        raise PluginError(f"{path} has changed: its sha256 was {sha256}, it is {is_now}")
    if not callable(named := getattr(found, name, None)):
        raise PluginError(f"{path} has no function {name}")
    return named


def source_of(factory: str) -> Source:
    """The module of a function that was imported."""
    return _sources[factory.partition(":")[0]]


@contextmanager
def explain_errors(what: str) -> Iterator[None]:
    """Turns every error of the user's code in its block into a PluginError of one line with the place."""
    try:
        yield
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # because it may raise anything
        said = " ".join(str(error).split())[:MAX_ERROR_CHARS]
        raise PluginError(one_line(f"{what}: {type(error).__name__}: {said}{_failing_line(error)}")) from error


def _failing_line(error: BaseException) -> str:
    """The line of the user's file, or else of a library, that raised an error: ` (file:line)`."""
    ours = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", ours))]
    known = {source.path for source in sources()}
    nearest = [f for f in frames if f.filename in known] or frames
    return f" ({nearest[-1].filename}:{nearest[-1].lineno})" if nearest else ""


@contextmanager
def blame_group(group: str) -> Iterator[None]:
    """Turns each fault of a PluginError of its block into a mistake of the key `GROUP.factory` in the sweep file."""
    try:
        yield
    except PluginError as error:
        raise SpecError([Problem(None, (group, "factory"), fault) for fault in error.faults]) from error
