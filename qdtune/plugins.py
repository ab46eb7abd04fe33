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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qdtune.data import Data, Splits, cut
from qdtune.rules import Problem, SpecError, mistake, one_line
from qdtune.spec import Spec

MAX_CLASSES = 65_536
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


def permit(spec: Spec, modules: Sequence[str], folders: Sequence[Path]) -> None:
    """Allows what a spec names of `modules`.

    Args:
        spec: as loaded.
        modules: what the user has named by hand.
        folders: where to look for them, after everything else.

    Raises:
        SpecError: the spec names others.
    """
    needed = {group: factory.partition(":")[0] for group, factory in spec.factories.items()}
    why = "is code of your own: it is imported only where the command says --allow-plugin"
    problems = [
        Problem(None, (group, "factory"), f"{spec.factories[group]} {why} {module}")
        for group, module in needed.items()
        if module not in modules
    ]
    if problems:
        raise SpecError(problems)
    allow(Grant(tuple(needed.values()), tuple(str(folder.resolve()) for folder in folders)))


def function(factory: str, sha256: str | None = None) -> Callable[..., Any]:
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
    with telling(f"{module} cannot be imported"):
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


def source(factory: str) -> Source:
    """Where a function that was imported comes from."""
    return _sources[factory.partition(":")[0]]


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Whatever code of others raises within, as a PluginError of one line, with the place."""
    try:
        yield
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # it may raise anything
        said = " ".join(str(error).split())[:MAX_TOLD]
        raise PluginError(one_line(f"{what}: {type(error).__name__}: {said}{_place(error)}")) from error


def _place(error: BaseException) -> str:
    """Where in the user's file, or else where in somebody else's, an error arose: ` (file:line)`."""
    ours = str(Path(__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(("<", ours))]
    known = {source.path for source in sources()}
    nearest = [f for f in frames if f.filename in known] or frames
    return f" ({nearest[-1].filename}:{nearest[-1].lineno})" if nearest else ""


@contextmanager
def blaming(group: str) -> Iterator[None]:
    """What is wrong with code of the user's, as a mistake of the sweep file's `GROUP.factory`."""
    try:
        yield
    except PluginError as error:
        raise mistake(str(error), group, "factory") from error


def read(spec: Spec, root: Path) -> tuple[Spec, Data]:
    """The data that the factory of a spec gives, and the spec with what is now known of it.

    Args:
        spec: its `data` has a factory, called as `factory(root)`, which returns train_x, train_y, test_x, test_y:
            (N, I) uint8 and (N,) whole numbers from 0.
        root: the folder of the data sets.

    Raises:
        SpecError: the factory cannot be used, or its data does not fit the rest of the spec.
    """
    factory = spec.data.factory or ""
    with blaming("data"):
        load = function(factory, spec.data.sha256)
        with telling(f"{factory} failed"):
            given = load(root)
        splits = _checked(factory, given)
        content = hashlib.sha256(repr([array.shape for array in splits]).encode())
        for array in splits:
            content.update(array.data)
        if spec.data.content not in (None, content.hexdigest()):
            raise PluginError(f"{factory} gives other data than when `content` was written")
    train_x, train_y = splits[:2]
    shape = [*train_x.shape, int(train_y.max()) + 1]
    known = {"sha256": source(factory).sha256, "content": content.hexdigest(), "shape": shape}
    return spec.changed("data", **known), cut(factory, splits, spec.data.val_size)


def _checked(factory: str, given: Any) -> Splits:
    """The four arrays of a factory in our types."""
    if not isinstance(given, tuple | list) or len(given) != 4:
        raise PluginError(f"{factory} must return (train_x, train_y, test_x, test_y), got {type(given).__name__}")
    with telling(f"{factory} must return four arrays"):
        arrays = [np.asarray(array) for array in given]
    train_x, train_y, test_x, test_y = arrays
    for split, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.dtype != np.uint8 or x.ndim != 2:
            what = f"{split}_x must be uint8 of shape (rows, inputs), got {x.dtype} of shape {x.shape}"
            raise PluginError(f"{factory}: {what}")
        if y.dtype.kind not in "iu" or y.shape != (len(x),):
            what = f"{split}_y must be one whole number for each of the {len(x)} rows of {split}_x"
            raise PluginError(f"{factory}: {what}, got {y.dtype} of shape {y.shape}")
    if len(train_x) < 2 or not test_x.size or train_x.shape[1] != test_x.shape[1]:
        what = "must give 2 rows to train on and 1 to test with, as wide as each other and not empty"
        raise PluginError(f"{factory} {what}, got shapes {train_x.shape} and {test_x.shape}")
    low, high = min(train_y.min(), test_y.min()), max(train_y.max(), test_y.max())
    if train_y.min() != 0 or low < 0 or high > train_y.max() or not 1 <= high < MAX_CLASSES:
        what = "labels must run from 0 to the number of classes - 1, and each of the test set's occur in training"
        raise PluginError(f"{factory}: {what}, got {low} to {high}")
    wide, whole = np.ascontiguousarray, np.int64
    return wide(train_x), wide(train_y, whole), wide(test_x), wide(test_y, whole)
