"""The one way to open a run folder: `open_run(run)`, then its `spec`, then its rows with `read_rows()`.

The three steps are separate because commands act between them: `verify` sets damaged files aside under the lock, and
`report` refuses a sweep file that no launch wrote. A launch already has a `Store` and a `Spec`, so it calls the
function `read_rows`.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace
from functools import cached_property

from qdtune.messages import one_line, user_error
from qdtune.spec.configuration import Configuration
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store import results as stored_results
from qdtune.store.columns import history_schema
from qdtune.store.folder import is_url, join_location
from qdtune.store.lost_weights import find_lost_weights, reopen_results
from qdtune.store.results import Result
from qdtune.store.store import Store
from qdtune.store.tables import Table, rows_among


@dataclass(frozen=True)
class StoredRows:
    """The rows of a run folder at the moment of reading.

    Attributes:
        spec: the resolved sweep.
        trials: one row per seed, as `columns.trials_schema`.
        history: one row per seed and epoch, as `columns.history_schema`.
        damaged: a line for each file that was skipped, with the reason.
        left_out: the same for files that were skipped because they are links or not ours.
        damaged_curves: those of `damaged` that hold learning curves; their results stand.
        lost_weights: the trials whose weights are gone, see `find_lost_weights`.
    """

    spec: Spec
    trials: Table
    history: Table
    damaged: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    damaged_curves: tuple[str, ...] = ()
    lost_weights: frozenset[str] = frozenset()

    @cached_property
    def members(self) -> dict[str, Configuration]:
        """trial_id -> the trial, for all trials of this sweep; other rows belong to other sweeps."""
        return stored_results.members(self.spec, self.trials)

    @cached_property
    def results(self) -> list[Result]:
        """The results of this sweep, in the order in which they finished."""
        return stored_results.results(self.spec, self.trials, self.history)

    @property
    def results_to_resume(self) -> list[Result]:
        """The results as a launch takes them: those whose weights are lost are unfinished."""
        return reopen_results(self.results, self.lost_weights)

    def of_members(self) -> StoredRows:
        """The same without the rows of other sweeps."""
        ids = self.members.keys()
        trials, history = (rows_among(table, "trial_id", ids) for table in (self.trials, self.history))
        return replace(self, trials=trials, history=history)


@dataclass(frozen=True)
class OpenedRun:
    """A run folder that holds a `sweep.yaml`.

    Attributes:
        where: its name in messages, on one line.
        store: the folder.
        sweep_yaml: the content of its `sweep.yaml`.
    """

    where: str
    store: Store
    sweep_yaml: bytes

    @cached_property
    def spec(self) -> Spec:
        """The sweep in its `sweep.yaml`.

        Raises:
            SpecError: `sweep.yaml` is not a valid sweep file.
        """
        return loads(self.sweep_yaml, join_location(self.where, "sweep.yaml"))

    def read_rows(self, with_history: bool = True) -> StoredRows:
        """The rows of the folder now, see the function `read_rows`."""
        return read_rows(self.store, self.spec, with_history)


def describe_missing_run(run: str | os.PathLike[str]) -> str:
    """The message for a folder that is no run folder, with the nearest run beside it on this machine."""
    where = os.fspath(run)
    beside, name = os.path.split(where.rstrip("/"))
    try:
        names = [] if is_url(where) else sorted(os.listdir(beside or "."))
    except (OSError, ValueError):  # there is no such folder, or the path holds a NUL
        names = []
    runs = [each for each in names if os.path.isfile(os.path.join(beside, each, "sweep.yaml"))]
    near = difflib.get_close_matches(name, runs, n=1)
    hint = f" (did you mean {one_line(os.path.join(beside, near[0]))}?)" if near else ""
    return f"{one_line(where)} is no run folder: it holds no sweep.yaml{hint}"


def open_run(run: str | os.PathLike[str]) -> OpenedRun:
    """The run folder at a path or URL. It writes nothing and reads no table.

    Raises:
        SpecError: the folder does not exist, is a file, or holds no `sweep.yaml`.
        LocationError: it is neither a path nor a URL of an object store.
        StorageError: it cannot be read.
    """
    where = one_line(os.fspath(run))
    if not where:
        raise user_error("the run folder must have a name, such as runs/NAME, got an empty one")
    if os.path.isfile(run):
        raise user_error(f"{where} must be a run folder, such as runs/NAME, got a file")
    store = Store(run)
    sweep_yaml = store.sweep_yaml()
    if sweep_yaml is None:
        raise user_error(describe_missing_run(run))
    return OpenedRun(where, store, sweep_yaml)


def read_rows(store: Store, spec: Spec, with_history: bool = True) -> StoredRows:
    """The rows of a run folder.

    Args:
        store: the folder.
        spec: the resolved sweep.
        with_history: whether to read learning curves; if not, `history` is empty.

    Raises:
        StorageError: the folder cannot be read.
        NewerSchemaError: a newer qdtune wrote a file.
    """
    trials, damaged, left_out = store.trials(), tuple(store.damaged), tuple(store.left_out)
    trials = stored_results.fill_costs(spec, trials)
    lost = find_lost_weights(store, trials)
    if not with_history:
        empty = history_schema(spec.metric).empty_table()
        return StoredRows(spec, trials, empty, damaged, left_out, lost_weights=lost)
    history = store.history()  # after the rows, because a curve is stored before its rows
    curves = tuple(store.damaged)
    return StoredRows(spec, trials, history, damaged + curves, left_out + tuple(store.left_out), curves, lost)
