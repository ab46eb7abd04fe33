"""The run folder: what is done, what came out, and the Pareto table over it.

One configuration is one immutable Parquet file, named by its `trial_id`, which appears whole or not at all (see
`storage`), so a kill at any moment leaves the old state or the new one; many are packed into one (see `parts`).
Whoever writes holds `Store.lock`; readers need none. Nothing unpickles.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.store import packs
from qdtune.store.columns import HISTORY, TRIALS
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import LocationError, RunInUse, StorageError, storage_errors
from qdtune.store.open_folder import open_folder
from qdtune.store.packs import Packs
from qdtune.store.pareto_table import aggregate, final_ids
from qdtune.store.parquet import DamagedError, NewerSchemaError, check_rows, stamped, to_bytes, to_table

PAGE = "report.html"  # of the run folder
# What can be wrong with a run folder, and the exit code of a command that meets it.
FAULTS: dict[type[Exception], int] = {LocationError: 2, NewerSchemaError: 2, StorageError: 4, RunInUse: 5}


class Store:
    """One run folder.

    Args:
        root: a path or a URL; `create` or `lock` makes it.

    Attributes:
        folder: where it lies.
        damaged: one line for each file that the latest `done`, `trials` or `history` skipped, with the reason.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.where, self.folder = root, open_folder(root)
        self.damaged: list[str] = []
        self._history, self._trials = Packs(self.folder, "history", HISTORY), Packs(self.folder, "trials", TRIALS)

    @property
    def root(self) -> Path:
        """The folder on this machine's disk; only where it is on one."""
        assert isinstance(self.folder, DiskFolder)
        return self.folder.root

    def create(self, sweep_yaml: str) -> None:
        """Makes the folder and writes, or replaces, its `sweep.yaml`.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.folder.write_file("sweep.yaml", sweep_yaml.encode())

    def sweep_yaml(self) -> bytes | None:
        """What `create` wrote; None where nothing is.

        Raises:
            StorageError: it cannot be read.
        """
        return self.folder.read_file("sweep.yaml")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch and clears what a killed one left half done.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """
        with self.folder.lock():
            self._history.clear()
            self._trials.clear()
            yield

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder on this machine's disk for files that grow: the run folder itself where it is on one."""
        if isinstance(self.folder, DiskFolder):
            yield self.root
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)

    def keep(self, file: Path) -> None:
        """Puts a file of the workspace into the run folder.

        Raises:
            StorageError: it cannot be read or written.
        """
        if not isinstance(self.folder, DiskFolder):
            with storage_errors(file):
                self.folder.write_file(file.name, file.read_bytes())

    def set_aside(self) -> str | None:
        """Renames the folder to `NAME.1`, or the next number that is free; the new place, None if there was none.

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
        """Commits a trial that has ended; True if written, False if what was there is as good and stays.

        A result that is not final is replaced, and one that was stopped early by one that was not; a damaged file is
        kept aside as `<trial_id>.parquet.damaged`.

        Args:
            trial_id: names the two files.
            rows: one dict per seed, keys from `TRIALS`; an absent key is null.
            history: one dict per seed and epoch, keys from `HISTORY`.
            metadata: provenance (versions, git commit), kept in the metadata of both files.
            weights: the packed file of the seeds that ended `ok`; without it, weights of an earlier result go, too.

        Raises:
            ValueError: a row with an unknown column, another trial_id or an unknown state; no rows.
            StorageError: the folder cannot be written; files committed earlier are untouched.
        """
        curves, results = to_table(history, HISTORY, metadata), to_table(rows, TRIALS, metadata)
        for table in (curves, results):
            check_rows(table, trial_id)
        try:
            found = self._trials.one(trial_id)
        except DamagedError:
            self._trials.set_aside(self._trials.file_of(trial_id))
        else:
            if found is not None and trial_id in final_ids(found):
                own = found.filter(pc.equal(found["trial_id"], trial_id))
                if not _stopped(own) or _stopped(results):
                    return False
        if weights is None:
            self.folder.remove_file(_weights(trial_id))
        else:
            self.folder.write_file(_weights(trial_id), weights)
        self._history.write(trial_id, curves)
        self._trials.write(trial_id, results)  # the last, because its presence says "done"
        if self._trials.loose >= packs.PACK:
            self.pack()
        return True

    def ids(self) -> set[str]:
        """The trials that have a result, whatever it is; no single file is opened.

        Raises:
            StorageError: the folder cannot be read.
        """
        return self._trials.ids()

    def trials(self, ids: Collection[str] | None = None) -> pa.Table:
        """The rows of all configurations, or of those of `ids` that are there: `TRIALS`, then columns unknown to it.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        table, self.damaged = self._trials.read(ids)
        return table

    def history(self, ids: Collection[str] | None = None) -> pa.Table:
        """The learning curves of all configurations, or of those of `ids` that are there; else like `trials`."""
        table, self.damaged = self._history.read(ids)
        return table

    def weights(self, trial_id: str) -> bytes | None:
        """The packed weights that `write` was given; None where none are kept, as of a version before there were any.

        Raises:
            StorageError: they cannot be read.
        """
        return self.folder.read_file(_weights(trial_id))

    def metadata(self, trial_id: str) -> dict[str, str]:
        """The provenance of a trial, as `write` was given it; empty where its file is damaged; else like `trials`."""
        try:
            table = self._trials.one(trial_id)
        except DamagedError:
            table = None
        found = {} if table is None else table.schema.metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}

    def write_pareto(self, ids: Collection[str] | None = None) -> pa.Table:
        """Writes `pareto.parquet` over all trials, or those of `ids`, and returns it; else like `trials`."""
        table = aggregate(self.trials(ids), bootstrap=True)
        self.folder.write_file("pareto.parquet", to_bytes(stamped(table, {})))
        return table

    def set_damaged_aside(self) -> list[str]:
        """Renames every damaged table to `NAME.damaged`, so that it is kept but counts no more; a line for each.

        To be called under the lock.

        Raises:
            StorageError: the folder cannot be read or written.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        return self._history.set_damaged_aside() + self._trials.set_damaged_aside()

    def pack(self) -> bool:
        """Packs what lies in single files, if these are `PACK` or more; whether it did. Only on a disk that can.

        Readers see the old folder or the new one and never a part of both. To be called under the lock.

        Raises:
            StorageError: the folder cannot be read.
        """
        history, trials = self._history.pack(), self._trials.pack()
        return history or trials


def _weights(trial_id: str) -> str:
    return f"weights/{trial_id}.safetensors"


def _stopped(rows: pa.Table) -> bool:
    return "pruned" in rows["state"].to_pylist()
