"""The run folder: what is done, what came out, and the Pareto table over it.

One configuration is one immutable Parquet file, named by its `trial_id`, which appears whole or not at all (see
`storage`), so a kill at any moment leaves the old state or the new one. On a disk, `PACK` of them at a time are
packed into one file, `packed-N.parquet`; the packed folder takes the place of the old one in a single step. Whoever
writes holds `Store.lock`; readers need none. Nothing unpickles.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.storage import (
    LocalFolder,
    LocationError,
    RunInUse,
    StorageError,
    open_folder,
    storage_errors,
    sync,
)
from qdtune.tables import (
    HISTORY,
    TRIALS,
    DamagedError,
    NewerSchemaError,
    aggregate,
    check_rows,
    final_ids,
    merge,
    parse,
    stamped,
    to_bytes,
    to_table,
)

PACK = 500  # configurations per packed file: few files to read, and damage to one costs no more than these
SCHEMAS = {"history": HISTORY, "trials": TRIALS}
# What can be wrong with a run folder, and the exit code of a command that meets it.
FAULTS: dict[type[Exception], int] = {LocationError: 2, NewerSchemaError: 2, StorageError: 4, RunInUse: 5}
AGAIN = 5  # how often a reader looks again where files were packed under its eyes


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
        self._packs: dict[str, dict[str, str]] = {}  # "trials" | "history" -> trial_id -> the pack that holds it
        self._loose: dict[str, dict[str, pa.Table]] = {kind: {} for kind in SCHEMAS}  # written and not yet packed

    @property
    def root(self) -> Path:
        """The folder on this machine's disk; only where it is on one."""
        assert isinstance(self.folder, LocalFolder)
        return self.folder.root

    def create(self, sweep_yaml: str) -> None:
        """Makes the folder and writes, or replaces, its `sweep.yaml`.

        Raises:
            StorageError: the folder cannot be written.
        """
        self.folder.write("sweep.yaml", sweep_yaml.encode())

    def sweep_yaml(self) -> bytes | None:
        """What `create` wrote; None where nothing is.

        Raises:
            StorageError: it cannot be read.
        """
        return self.folder.read("sweep.yaml")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch and clears what a killed one left half done.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """
        with self.folder.lock():
            if isinstance(self.folder, LocalFolder):
                for kind in SCHEMAS:  # the old folder if it was killed after the step, else an unfinished new one
                    shutil.rmtree(self._staging(kind), ignore_errors=True)
            yield

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder on this machine's disk for files that grow: the run folder itself where it is on one."""
        if isinstance(self.folder, LocalFolder):
            yield self.root
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder)

    def keep(self, file: Path) -> None:
        """Puts a file of the workspace into the run folder.

        Raises:
            StorageError: it cannot be read or written.
        """
        if not isinstance(self.folder, LocalFolder):
            with storage_errors(file):
                self.folder.write(file.name, file.read_bytes())

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
        tables = {"history": to_table(history, HISTORY, metadata), "trials": to_table(rows, TRIALS, metadata)}
        for table in tables.values():
            check_rows(table, trial_id)
        held = self._pack_of("trials").get(trial_id, f"{trial_id}.parquet")
        file = f"{trial_id}.parquet"
        if (data := self.folder.read(f"trials/{held}")) is not None:
            found, damaged = self._gather("trials", [held], [data], {trial_id})
            if trial_id in final_ids(found) and (not _stopped(found) or _stopped(tables["trials"])):
                return False
            if damaged:
                self.folder.rename(f"trials/{held}", f"trials/{held}.damaged")
        for kind, table in tables.items():  # the trials file comes last, because its presence says "done"
            self._unpack(kind, trial_id)
            self.folder.write(f"{kind}/{file}", to_bytes(table))
            self._loose[kind][trial_id] = table
        if len(self._loose["trials"]) >= PACK:
            self.pack()
        return True

    def ids(self) -> set[str]:
        """The trials that have a result, whatever it is; no single file is opened.

        Raises:
            StorageError: the folder cannot be read.
        """
        single = {file.removesuffix(".parquet") for file in self._files("trials") if not _is_pack(file)}
        return single | self._pack_of("trials").keys()

    def trials(self, ids: Collection[str] | None = None) -> pa.Table:
        """The rows of all configurations, or of those of `ids` that are there: `TRIALS`, then columns unknown to it.

        Raises:
            StorageError: the folder cannot be read.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        table, self.damaged = self._scan("trials", ids)
        return table

    def history(self, ids: Collection[str] | None = None) -> pa.Table:
        """The learning curves of all configurations, or of those of `ids` that are there; else like `trials`."""
        table, self.damaged = self._scan("history", ids)
        return table

    def write_pareto(self, ids: Collection[str] | None = None) -> pa.Table:
        """Writes `pareto.parquet` over all trials, or those of `ids`, and returns it; else like `trials`."""
        table = aggregate(self.trials(ids), bootstrap=True)
        self.folder.write("pareto.parquet", to_bytes(stamped(table, {})))
        return table

    def set_damaged_aside(self) -> list[str]:
        """Renames every damaged table to `NAME.damaged`, so that it is kept but counts no more; a line for each.

        To be called under the lock.

        Raises:
            StorageError: the folder cannot be read or written.
            NewerSchemaError: a file was written by a newer qdtune.
        """
        lines = []
        for kind in SCHEMAS:
            for file in self._files(kind):
                try:
                    self._table(kind, file, self.folder.read(f"{kind}/{file}") or b"")
                except DamagedError as error:
                    self.folder.rename(f"{kind}/{file}", f"{kind}/{file}.damaged")
                    lines.append(f"{self.folder.name(f'{kind}/{file}')}: {error}")
        self._packs.clear()
        return lines

    def pack(self) -> bool:
        """Packs what lies in single files, if these are `PACK` or more; whether it did. Only on a disk that can.

        Readers see the old folder or the new one and never a part of both. To be called under the lock.

        Raises:
            StorageError: the folder cannot be read.
        """
        if not isinstance(self.folder, LocalFolder):
            return False
        history, trials = (self._pack(kind, self.folder.root / kind) for kind in SCHEMAS)
        return history or trials

    def _pack(self, kind: str, folder: Path) -> bool:
        files = self._files(kind)
        singles = [file for file in files if not _is_pack(file)]
        if len(singles) < PACK:
            return False
        groups: dict[tuple[tuple[bytes, bytes], ...], list[pa.Table]] = {}  # by provenance, which is one per file
        packed = set()
        for file in singles:
            table = self._loose[kind].get(file.removesuffix(".parquet"))
            if table is None:
                with contextlib.suppress(DamagedError):  # stays where it is
                    table = self._table(kind, file, self.folder.read(f"{kind}/{file}") or b"", whole=True)
            if table is not None and table.schema.names == SCHEMAS[kind].names:
                groups.setdefault(tuple(sorted((table.schema.metadata or {}).items())), []).append(table)
                packed.add(file)
        chunks = [pa.concat_tables(g[k : k + PACK]) for g in groups.values() for k in range(0, len(g), PACK)]
        number = max((int(_number(file)) for file in files if _is_pack(file)), default=0)
        packs = {f"packed-{n}.parquet": table for n, table in enumerate(chunks, number + 1)}
        self._loose[kind].clear()
        staging = self._staging(kind)
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            for name in set(os.listdir(folder)) - packed:
                os.link(folder / name, staging / name)
            for name, table in packs.items():
                LocalFolder(staging).write(name, to_bytes(table))
            sync(staging)
            swapped = _exchange(staging, folder)
            sync(folder.parent)
        except OSError:  # a full disk, or one that knows no links: what is there is as good
            swapped = False
        shutil.rmtree(staging, ignore_errors=True)
        if swapped and kind in self._packs:  # to read all packs again would take ever longer
            for name, table in packs.items():
                self._packs[kind] |= dict.fromkeys(table["trial_id"].unique().to_pylist(), name)
        return swapped

    def _staging(self, kind: str) -> Path:
        return self.root / f".{kind}.packing"

    def _unpack(self, kind: str, trial_id: str) -> None:
        """Takes a trial out of its pack, before another result is written; killed in between, it runs again."""
        if (pack := self._pack_of(kind).pop(trial_id, None)) is None:
            return
        with contextlib.suppress(DamagedError):  # then nothing of it counts
            table = self._table(kind, pack, self.folder.read(f"{kind}/{pack}") or b"", whole=True)
            rest = table.filter(pc.not_equal(table["trial_id"], trial_id))
            self.folder.write(f"{kind}/{pack}", to_bytes(rest))

    def _pack_of(self, kind: str) -> dict[str, str]:
        """trial_id -> the pack that holds it."""
        if kind not in self._packs:
            found: dict[str, str] = {}
            for pack in filter(_is_pack, self._files(kind)):
                with contextlib.suppress(DamagedError):
                    table = self._table(kind, pack, self.folder.read(f"{kind}/{pack}") or b"")
                    found |= dict.fromkeys(table["trial_id"].unique().to_pylist(), pack)
            self._packs[kind] = found
        return self._packs[kind]

    def _files(self, kind: str) -> list[str]:
        return [file for file in self.folder.files(kind) if file.endswith(".parquet") and file[0] != "."]

    def _table(self, kind: str, file: str, data: bytes, whole: bool = False) -> pa.Table:
        """The rows in a file's bytes, checked; `whole` with its metadata."""
        table = parse(data, self.folder.name(f"{kind}/{file}"), SCHEMAS[kind], whole)
        check_rows(table, None if _is_pack(file) else file.removesuffix(".parquet"))
        return table

    def _scan(self, kind: str, ids: Collection[str] | None) -> tuple[pa.Table, list[str]]:
        """All rows, or those of `ids`, and a line for each damaged file."""
        wanted = None if ids is None else set(ids)
        for _ in range(AGAIN):
            files = self._files(kind)
            if wanted is not None:
                files = [file for file in files if _is_pack(file) or file.removesuffix(".parquet") in wanted]
            contents = list(self.folder.read_all([f"{kind}/{file}" for file in files]))
            if None not in contents:  # else some were packed since they were listed: look again
                break
        return self._gather(kind, files, contents, wanted)

    def _gather(
        self, kind: str, files: list[str], contents: list[bytes | None], wanted: set[str] | None
    ) -> tuple[pa.Table, list[str]]:
        tables, damaged, merged = [SCHEMAS[kind].empty_table()], [], SCHEMAS[kind]
        for file, data in zip(files, contents, strict=True):
            if data is None:
                continue
            try:
                table = self._table(kind, file, data)
                merged = merge(merged, table.schema, SCHEMAS[kind])
            except DamagedError as error:
                damaged.append(f"{self.folder.name(f'{kind}/{file}')}: {error}")
            else:
                if wanted is not None and _is_pack(file):
                    table = table.filter(pc.is_in(table["trial_id"], pa.array(sorted(wanted), pa.string())))
                tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive"), damaged


def _stopped(rows: pa.Table) -> bool:
    return "pruned" in rows["state"].to_pylist()


def _number(file: str) -> str:
    return file.removeprefix("packed-").removesuffix(".parquet")


def _is_pack(file: str) -> bool:
    return file.startswith("packed-") and _number(file).isdecimal()


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, see renameat2(2)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps the names of two folders in one step; False where the kernel or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number))
