"""The run folder: what is done, what came out, and the Pareto table over it.

One configuration is one immutable Parquet file, named by its `trial_id`. A file appears whole or not at all: it
is put together in memory, written under a dot name, fsynced and renamed, so a kill at any moment leaves the old
state or the new one. Whoever writes holds `Store.lock`, which the kernel frees; readers need none. Nothing unpickles.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import socket
from collections.abc import Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa

from qdtune.tables import (
    HISTORY,
    TRIALS,
    DamagedError,
    aggregate,
    check_rows,
    final_ids,
    merge,
    parse,
    stamped,
    to_bytes,
    to_table,
)


class RunInUse(ValueError):  # noqa: N818 - the state is the message
    """Another launch holds this run folder."""


class StorageError(OSError):
    """The run folder cannot be read or written; what was committed is as it was."""


class Store:
    """One run folder.

    Args:
        root: the folder; `create` or `lock` makes it.

    Attributes:
        damaged: one line for each file that the latest `done`, `trials` or `history` skipped, with the reason.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.damaged: list[str] = []

    def create(self, sweep_yaml: str) -> None:
        """Makes the folder and writes, or replaces, its `sweep.yaml`.

        Raises:
            StorageError: the folder cannot be written.
        """
        commit(self.root / "sweep.yaml", sweep_yaml.encode())

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch and clears what a killed one left half written.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """
        path = self.root / ".lock"
        with contextlib.ExitStack() as stack:
            with storage_errors(path):
                self.root.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a+"))  # never removed: a second file could be locked beside it
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read().strip() or "a launch that is just starting"
                    raise RunInUse(
                        f"one launch may use {self.root} at a time, but it is held by {holder}: "
                        "wait for its end, or stop it and run the same command again"
                    ) from None
                file.truncate(0)
                now = datetime.now(timezone.utc).isoformat(timespec="seconds")
                file.write(f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n")
                file.flush()
                for leftover in self.root.glob("**/.*.tmp"):
                    leftover.unlink()
            yield

    def set_aside(self) -> Path | None:
        """Renames the folder to `NAME.1`, or the next number that is free; the new path, None if there was none.

        Raises:
            RunInUse: another process holds it.
            StorageError: it cannot be renamed.
        """
        if not self.root.exists():
            return None
        numbers = itertools.count(1)
        aside = next(p for n in numbers if not (p := self.root.with_name(f"{self.root.name}.{n}")).exists())
        with self.lock(), storage_errors(self.root):
            self.root.rename(aside)
        return aside

    def write(
        self,
        trial_id: str,
        rows: list[dict[str, Any]],
        history: list[dict[str, Any]],
        metadata: dict[str, str],
    ) -> bool:
        """Commits a trial that has ended; True if written, False if what was there is as good and stays.

        A result that is not final is replaced, and one that was stopped early by one that was not; a damaged file is
        kept aside as `<trial_id>.parquet.damaged`.

        Args:
            trial_id: names the two files.
            rows: one dict per seed, keys from `TRIALS`; an absent key is null.
            history: one dict per seed and epoch, keys from `HISTORY`.
            metadata: provenance (versions, git commit), kept in the metadata of both files.

        Raises:
            ValueError: a row with an unknown column, another trial_id or an unknown state; no rows.
            StorageError: the folder cannot be written; files committed earlier are untouched.
        """
        tables = [("history", to_table(history, HISTORY, metadata)), ("trials", to_table(rows, TRIALS, metadata))]
        for _, table in tables:
            check_rows(table, trial_id)
        path = self.root / "trials" / f"{trial_id}.parquet"
        found, damaged = self._scan("trials", TRIALS, [trial_id])
        if trial_id in final_ids(found) and (not _stopped(found) or _stopped(tables[1][1])):
            return False
        if damaged:
            with storage_errors(path):
                path.replace(f"{path}.damaged")
        for folder, table in tables:  # the trials file comes last, because its presence says "done"
            commit(self.root / folder / f"{trial_id}.parquet", to_bytes(table))
        return True

    def trials(self, ids: Collection[str] | None = None) -> pa.Table:
        """The rows of all configurations, or of those of `ids` that are there: `TRIALS`, then columns unknown to it.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        table, self.damaged = self._scan("trials", TRIALS, ids)
        return table

    def history(self, ids: Collection[str] | None = None) -> pa.Table:
        """The learning curves of all configurations, or of those of `ids` that are there; else like `trials`."""
        table, self.damaged = self._scan("history", HISTORY, ids)
        return table

    def write_pareto(self, ids: Collection[str] | None = None) -> pa.Table:
        """Writes `pareto.parquet` over all trials, or those of `ids`, and returns it; else like `trials`."""
        table = aggregate(self.trials(ids))
        commit(self.root / "pareto.parquet", to_bytes(stamped(table, {})))
        return table

    def _scan(self, folder: str, schema: pa.Schema, ids: Collection[str] | None) -> tuple[pa.Table, list[str]]:
        if ids is None:
            with storage_errors(self.root / folder), contextlib.suppress(FileNotFoundError):
                names = os.listdir(self.root / folder)
                ids = [n.removesuffix(".parquet") for n in names if n.endswith(".parquet") and n[0] != "."]
        tables, damaged, merged = [schema.empty_table()], [], schema
        for trial_id in sorted(set(ids or ())):
            path = self.root / folder / f"{trial_id}.parquet"
            if (data := _read(path)) is None:
                continue
            try:
                table = parse(data, path, schema)
                check_rows(table, trial_id)
                merged = merge(merged, table.schema, schema)
            except DamagedError as error:
                damaged.append(f"{path}: {error}")
            else:
                tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive"), damaged


def _stopped(rows: pa.Table) -> bool:
    return "pruned" in rows["state"].to_pylist()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Any OSError within becomes a StorageError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} must be readable and writable, got {error.strerror or error}: mend that and run the same "
            "command again, what was finished is kept"
        ) from error


def _read(path: Path) -> bytes | None:
    """The whole file, None where there is none."""
    with storage_errors(path), contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def commit(path: Path, data: bytes) -> None:
    """Makes the file hold the data, whole or not at all, and durable before it returns."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temp, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except OSError:
            with contextlib.suppress(OSError):
                temp.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name survives a power cut, too
        finally:
            os.close(folder)
