"""The run folder: its sweep file, the results of its trials, and the Pareto table over them.

Each configuration is one immutable Parquet file, named by its `trial_id`. It appears whole or not at all (see
`folder`), so a kill at any moment leaves the old state or the new one. Many files are packed into one (see `packs`).
Writers hold `Store.lock`; readers need no lock. Nothing unpickles.

This file is long because `Store` is all that a run folder offers, in one place; the work is done by what it calls.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.spec.judging import read_metric
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store import packs
from qdtune.store.columns import history_schema, trials_schema
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import LinkError, LocationError, RunInUse, StorageError, UnreadableError, storage_errors
from qdtune.store.open_folder import open_folder
from qdtune.store.packs import Damage, Packs
from qdtune.store.pareto_table import aggregate, final_ids
from qdtune.store.parquet import (
    VERSION_KEY,
    DamagedError,
    NewerSchemaError,
    add_metadata,
    check_rows,
    to_bytes,
    to_table,
)
from qdtune.store.results import fill_costs

PAGE = "report.html"  # the name of the report page in the run folder
# The errors of a run folder, and the exit code of a command for each.
FAULTS: dict[type[Exception], int] = {
    LocationError: 2,
    NewerSchemaError: 2,
    LinkError: 2,
    UnreadableError: 2,
    StorageError: 4,
    RunInUse: 5,
}


class Store:
    """One run folder.

    Args:
        root: a path or a URL; `create` or `lock` creates it.

    Attributes:
        folder: its files.
        damaged: one line for each file that the latest `trials` or `history` skipped, with the reason.
        left_out: the same for files that it skipped because they are links or not ours.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.where, self.folder = root, open_folder(root)
        self.damaged: list[str] = []
        self.left_out: list[str] = []
        self._history = Packs(self.folder, "history", lambda: self.history_schema)
        self._trials = Packs(self.folder, "trials", lambda: self.trials_schema)
        self._judged_by: tuple[Metric, tuple[Metric, ...]] | None = None  # read from `sweep.yaml` on demand

    @property
    def root(self) -> Path:
        """The path of the folder; only if it is on a disk."""
        assert isinstance(self.folder, DiskFolder)
        return self.folder.root

    def create(self, sweep_yaml: str) -> None:
        """Creates the folder and writes, or replaces, its `sweep.yaml`.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.folder.write_file("sweep.yaml", sweep_yaml.encode())
        self._judged_by = None

    def sweep_yaml(self) -> bytes | None:
        """The content of `sweep.yaml`; None if it does not exist.

        Raises:
            StorageError: it cannot be read.
        """
        return self.folder.read_file("sweep.yaml")

    @property
    def trials_schema(self) -> pa.Schema:
        """The columns of `trials`; they are named by the metric in `sweep.yaml`, accuracy if there is none.

        Raises:
            SpecError: `sweep.yaml` is not YAML.
            StorageError: it cannot be read.
        """
        return trials_schema(*self._find_metrics())

    @property
    def history_schema(self) -> pa.Schema:
        """The columns of `history`, see `trials_schema`."""
        return history_schema(self._find_metrics()[0])

    def _find_metrics(self) -> tuple[Metric, tuple[Metric, ...]]:
        """The metric that judges, and those that are measured on the test set only."""
        if self._judged_by is None:
            sweep_yaml = self.sweep_yaml()
            if sweep_yaml is None:
                return ACCURACY, ()
            task, metric = read_metric(sweep_yaml, self.folder.full_name("sweep.yaml"))
            self._judged_by = metric, task.also_tested(metric)
        return self._judged_by

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch, and removes temporary files of a killed launch.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """
        with self.folder.lock():
            self._history.remove_staging()
            self._trials.remove_staging()
            yield

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder on this machine's disk for files that grow: the run folder itself if it is on a disk."""
        if isinstance(self.folder, DiskFolder):
            yield self.root
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)

    def keep(self, file: Path) -> None:
        """Copies a file of the workspace into the run folder, unless it is there already.

        Raises:
            StorageError: it cannot be read or written.
        """
        if not isinstance(self.folder, DiskFolder):
            with storage_errors(file):
                self.folder.write_file(file.name, file.read_bytes())

    def set_aside(self) -> str | None:
        """Renames the folder to `NAME.1`, or the next free number, and returns its new location, if any.

        Raises:
            RunInUse: another process holds it.
            StorageError: it cannot be renamed.
        """
        if not self.folder.exists():
            return None
        where = os.fspath(self.where).rstrip("/")
        others = (open_folder(f"{where}.{n}") for n in itertools.count(1))
        aside = next(folder for folder in others if not folder.exists())
        with self.folder.lock():
            self.folder.move_to(aside)
        return str(aside)

    def write(
        self,
        trial_id: str,
        rows: list[dict[str, Any]],
        history: list[dict[str, Any]],
        metadata: dict[str, str],
        weights: bytes | None = None,
    ) -> bool:
        """Commits a trial that has ended; True if written, False if the existing result stays.

        A result that is not final is replaced. A result that was stopped early is replaced by one that was not. A
        damaged file is renamed to `<trial_id>.parquet.damaged`. If the weights of a result are gone, those of a later
        attempt are written; if its numbers differ, as on another device, its rows and curve are replaced, too.

        Args:
            trial_id: the name of its files.
            rows: one dict per seed, with keys from `trials_schema`; an absent key is null.
            history: one dict per seed and epoch, with keys from `history_schema`.
            metadata: its provenance (versions, git commit), which both files hold.
            weights: the packed model of the seeds that ended `ok`; None removes the weights of an earlier result.

        Raises:
            ValueError: a row has an unknown column, another trial_id or an unknown state; or there are no rows.
            StorageError: the folder cannot be written; earlier files are unchanged.
        """
        curves = to_table(history, self.history_schema, metadata)
        results = to_table(rows, self.trials_schema, metadata)
        for table in (curves, results):
            check_rows(table, trial_id)
        try:
            found = self._trials.read_file_of(trial_id)
        except DamagedError:
            self._trials.set_aside(self._trials.file_of(trial_id))
        else:
            if found is not None and trial_id in final_ids(found):
                same_trial = found.filter(pc.equal(found["trial_id"], trial_id))
                if not _is_stopped(same_trial) or _is_stopped(results):
                    return self._restore_weights(trial_id, same_trial, results, weights, curves)
        if weights is None:
            self.folder.remove_file(_weights_file(trial_id))
        else:
            self.folder.write_file(_weights_file(trial_id), weights)
        self._history.write(trial_id, curves)
        self._trials.write(trial_id, results)  # last, because it marks the trial as done
        if self._trials.n_singles >= packs.PACK_SIZE:
            self.pack_files()
        return True

    def _restore_weights(
        self, trial_id: str, found: pa.Table, results: pa.Table, weights: bytes | None, curves: pa.Table
    ) -> bool:
        """Writes a new result in place of one whose weights are gone; whether it did.

        If both have the same numbers only the weights are written.
        """
        are_ok = all(any(row["state"] == "ok" for row in rows.to_pylist()) for rows in (found, results))
        is_gone = are_ok and self.name_weights(trial_id) not in self.list_weights()
        if weights is None or not is_gone or trial_id not in final_ids(results):
            return False
        self.folder.write_file(_weights_file(trial_id), weights)
        if self._list_numbers(found) != self._list_numbers(results):
            self._history.write(trial_id, curves)
            self._trials.write(trial_id, results)
        return True

    def _list_numbers(self, rows: pa.Table) -> list[Any]:
        """The numbers of a result that a training on the same device repeats to the last bit."""
        metric, _ = self._find_metrics()
        names = ("seed", "state", "train_loss", metric.val, metric.test)
        return sorted(tuple(repr(row[name]) for name in names) for row in rows.to_pylist())

    def ids(self) -> set[str]:
        """The ids of the trials that have a result in any state. Single files are not opened.

        Raises:
            StorageError: the folder cannot be read.
        """
        return self._trials.ids()

    def trials(self, ids: Collection[str] | None = None) -> pa.Table:
        """The rows of all trials, or of the trials `ids`: the columns of `trials_schema`, then unknown columns.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a newer qdtune wrote a file.
        """
        table, self.damaged = self._trials.read_table(ids)
        self.left_out = self._trials.left_out
        return table

    def history(self, ids: Collection[str] | None = None) -> pa.Table:
        """The learning curves of all trials, or of the trials `ids`; raises as `trials` does."""
        table, self.damaged = self._history.read_table(ids)
        self.left_out = self._history.left_out
        return table

    def weights(self, trial_id: str) -> bytes | None:
        """The packed weights from `write`; None if there are none, as in run folders of old versions.

        Raises:
            StorageError: they cannot be read.
        """
        return self.folder.read_file(_weights_file(trial_id))

    def list_weights(self) -> set[str]:
        """The names of the files in the folder of the weights, damaged ones that were set aside included.

        Raises:
            StorageError: the folder cannot be read.
        """
        return set(self.folder.list_files("weights"))

    def name_weights(self, trial_id: str) -> str:
        """The name that the file of a trial's weights has in `list_weights`."""
        return _weights_file(trial_id).partition("/")[2]

    def written_since(self, version: int, trial_ids: Collection[str]) -> frozenset[str]:
        """Those of the trials whose rows were written in this schema version or a later one.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a newer qdtune wrote a file.
        """
        by_file: dict[str, list[str]] = {}
        for trial_id in trial_ids:
            by_file.setdefault(self._trials.file_of(trial_id), []).append(trial_id)
        found: set[str] = set()
        for ids in by_file.values():
            if int(self.metadata(ids[0]).get(VERSION_KEY, 0)) >= version:
                found.update(ids)
        return frozenset(found)

    def metadata(self, trial_id: str) -> dict[str, str]:
        """The provenance of a trial from `write`; empty if its file is damaged. Raises as `trials` does."""
        try:
            table = self._trials.read_file_of(trial_id)
        except DamagedError:
            table = None
        found = {} if table is None else table.schema.metadata or {}
        return {key.decode(): value.decode(errors="replace") for key, value in found.items()}

    def write_pareto(
        self,
        ids: Collection[str] | None = None,
        p_reach: Mapping[str, float] | None = None,
        spec: Spec | None = None,
    ) -> pa.Table:
        """Writes `pareto.parquet` over all trials, or the trials `ids`, and returns it; raises as `trials` does.

        Args:
            ids: of trials.
            p_reach: see `aggregate`.
            spec: the sweep, which names the costs of the front; None: the default ones.
        """
        table = self.make_pareto(ids, p_reach, spec)
        noted = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        self.folder.write_file("pareto.parquet", to_bytes(add_metadata(table, noted)))
        return table

    def make_pareto(
        self, ids: Collection[str] | None, p_reach: Mapping[str, float] | None, spec: Spec | None
    ) -> pa.Table:
        """The table that `write_pareto` writes."""
        trials = self.trials(ids)
        if spec is None:
            return aggregate(trials, bootstrap=True, p_reach=p_reach)
        return aggregate(fill_costs(spec, trials), bootstrap=True, p_reach=p_reach, costs=spec.costs)

    def find_damaged(self) -> list[str]:
        """A line for every damaged table; raises as `set_damaged_aside` does."""
        return [damage.line for damage in self.list_damage()]

    def list_damage(self) -> list[Damage]:
        """Every damaged table; raises as `set_damaged_aside` does."""
        return [damage for kind in (self._history, self._trials) for damage in kind.find_damaged()]

    def set_damaged_aside(self) -> list[str]:
        """Renames every damaged table to `NAME.damaged`, so that it is kept but ignored, and returns a line for each.

        Must be called under the lock.

        Raises:
            StorageError: the folder cannot be read or written.
            NewerSchemaError: a newer qdtune wrote a file.
        """
        return self._history.set_damaged_aside() + self._trials.set_damaged_aside()

    def pack_files(self) -> bool:
        """Packs the single files if there are at least `PACK_SIZE`; whether it did. Only on a disk that supports it.

        Readers see the old folder or the new one and never a mixture. Must be called under the lock.

        Raises:
            StorageError: the folder cannot be read.
        """
        history, trials = self._history.pack_files(), self._trials.pack_files()
        return history or trials


def _weights_file(trial_id: str) -> str:
    return f"weights/{trial_id}.safetensors"


def _is_stopped(rows: pa.Table) -> bool:
    return "pruned" in rows["state"].to_pylist()
