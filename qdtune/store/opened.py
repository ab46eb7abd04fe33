"""The one way to open a run folder: `open_run(run)`, then its `spec`, then its rows with `read()`.

The three steps are apart because a command may do something in between: `verify` sets damaged files aside under the
lock, `report` refuses a sweep file that no launch wrote. Who holds a `Store` and a `Spec` already, as a launch does,
calls `read_rows`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

from qdtune.messages import one_line, user_error
from qdtune.spec.configuration import Configuration
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store import results as stored_results
from qdtune.store.columns import HISTORY
from qdtune.store.folder import join_location
from qdtune.store.results import Result
from qdtune.store.store import Store
from qdtune.store.tables import Table, rows_among


@dataclass(frozen=True)
class StoredRows:
    """The rows of a run folder, as they were when they were read.

    Attributes:
        spec: the sweep that they are read for, resolved.
        trials: one row per seed, as `columns.TRIALS`.
        history: one row per seed and epoch, as `columns.HISTORY`.
        damaged: a line for each file that was skipped, with the reason.
    """

    spec: Spec
    trials: Table
    history: Table
    damaged: tuple[str, ...]

    @cached_property
    def members(self) -> dict[str, Configuration]:
        """The trials that this sweep could have run itself, by trial_id; the others belong to another one."""
        return stored_results.members(self.spec, self.trials)

    @cached_property
    def results(self) -> list[Result]:
        """The results that this sweep could have made itself, in the order in which they came."""
        return stored_results.results(self.spec, self.trials, self.history)

    def of_members(self) -> StoredRows:
        """The same without the rows of other sweeps."""
        ids = self.members.keys()
        trials, history = (rows_among(table, "trial_id", ids) for table in (self.trials, self.history))
        return replace(self, trials=trials, history=history)


@dataclass(frozen=True)
class OpenedRun:
    """A run folder that holds a `sweep.yaml`.

    Attributes:
        where: what messages call it, on one line.
        store: the folder.
        sweep_yaml: the content of its `sweep.yaml`.
    """

    where: str
    store: Store
    sweep_yaml: bytes

    @cached_property
    def spec(self) -> Spec:
        """The sweep as it stands in the folder.

        Raises:
            SpecError: `sweep.yaml` is no sweep file.
        """
        return loads(self.sweep_yaml, join_location(self.where, "sweep.yaml"))

    def read(self, with_history: bool = True) -> StoredRows:
        """The rows as they are now, see `read_rows`."""
        return read_rows(self.store, self.spec, with_history)


def open_run(run: str | os.PathLike[str]) -> OpenedRun:
    """The run folder at a path or URL. Nothing is written, and no table is read yet.

    Raises:
        SpecError: the folder, if there is one, holds no `sweep.yaml`.
        LocationError: it is neither a path nor a URL of an object store.
        StorageError: it cannot be read.
    """
    where, store = one_line(os.fspath(run)), Store(run)
    sweep_yaml = store.sweep_yaml()
    if sweep_yaml is None:
        raise user_error(f"{where} is no run folder: it holds no sweep.yaml")
    return OpenedRun(where, store, sweep_yaml)


def read_rows(store: Store, spec: Spec, with_history: bool = True) -> StoredRows:
    """The rows of a run folder.

    Args:
        store: the folder.
        spec: the sweep that they are read for, resolved.
        with_history: whether learning curves are read; else `history` is empty.

    Raises:
        StorageError: the folder cannot be read.
        NewerSchemaError: a file was written by a newer qdtune.
    """
    trials, damaged = store.trials(), tuple(store.damaged)
    if not with_history:
        return StoredRows(spec, trials, HISTORY.empty_table(), damaged)
    history = store.history()  # after the rows: a curve is stored before its rows are
    return StoredRows(spec, trials, history, damaged + tuple(store.damaged))
