"""Code of the user's own: the one door through which a module named by a sweep file comes in, and data of its making.

A sweep file may name functions, but naming imports nothing: only what was granted by hand (`--allow-plugin`) is
imported, by exactly that name, and its source is known by its hash from then on. A worker is granted what its driver
was, and refuses a source that has changed since.
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

from qdtune.messages import Problem, SpecError, one_line, user_error

MAX_TOLD = 300  # characters of what somebody else's code has to say


class PluginError(ValueError):
    """Code of the user's that cannot be used, and why, in one line."""


class Grant(NamedTuple):
    """What a process may import: modules by their full names, and folders where they may lie."""

    modules: tuple[str, ...]
    folders: tuple[str, ...]


class Source(NamedTuple):
    """A module that was imported: its name, its file, the sha256 of that."""

    module: str
    path: str
    sha256: str


NOTHING = Grant((), ())
_grants: list[Grant] = []
_sources: dict[str, Source] = {}


def allow(grant: Grant) -> None:
    """Lets this process import what is granted; nothing is imported yet.

    The folders are looked at last, so that a file in one of them never takes the place of an installed module.
    """
    if grant not in _grants:
        _grants.append(grant)
        sys.path.extend(folder for folder in grant.folders if folder not in sys.path)


def granted() -> Grant:
    """All that this process may import, to be handed to its workers."""
    return Grant(*(tuple(dict.fromkeys(name for grant in _grants for name in grant[i])) for i in range(2)))


def sources() -> list[Source]:
    """What has been imported through this door."""
    return list(_sources.values())


def permit(factories: Mapping[str, str], modules: Sequence[str], folders: Sequence[Path]) -> None:
    """Allows the modules of the functions that a sweep file names.

    Args:
        factories: these functions, `package.module:function`, by the group that names them.
        modules: what the user has named by hand.
        folders: where to look for them, after everything else.

    Raises:
        SpecError: the file names others.
    """
    needed = {group: factory.partition(":")[0] for group, factory in factories.items()}
    why = "is code of your own: it is imported only where the command says --allow-plugin"
    problems = [
        Problem(None, (group, "factory"), f"{factories[group]} {why} {module}")
        for group, module in needed.items()
        if module not in modules
    ]
    if problems:
        raise SpecError(problems)
    allow(Grant(tuple(needed.values()), tuple(str(folder.resolve()) for folder in folders)))


def load_function(factory: str, sha256: str | None = None) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Args:
        factory: whose module was allowed.
        sha256: what its source must hash to; None takes it as it is.

    Raises:
        PluginError: it was not allowed, cannot be imported, has no such function, or has another source.
    """
    module, _, name = factory.partition(":")
    if module not in granted().modules:
        raise PluginError(f"{module} was not allowed by --allow-plugin")
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
    """Where a function that was imported comes from."""
    return _sources[factory.partition(":")[0]]


@contextmanager
def explain_errors(what: str) -> Iterator[None]:
    """Whatever code of others raises within, as a PluginError of one line, with the place."""
    try:
        yield
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # it may raise anything
        said = " ".join(str(error).split())[:MAX_TOLD]
        raise PluginError(one_line(f"{what}: {type(error).__name__}: {said}{_failing_line(error)}")) from error


def _failing_line(error: BaseException) -> str:
    """Where in the user's file, or else where in somebody else's, an error arose: ` (file:line)`."""
    ours = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", ours))]
    known = {source.path for source in sources()}
    nearest = [f for f in frames if f.filename in known] or frames
    return f" ({nearest[-1].filename}:{nearest[-1].lineno})" if nearest else ""


@contextmanager
def blame_group(group: str) -> Iterator[None]:
    """What is wrong with code of the user's, as a mistake of the sweep file's `GROUP.factory`."""
    try:
        yield
    except PluginError as error:
        raise user_error(str(error), group, "factory") from error
