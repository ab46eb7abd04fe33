"""The Parquet files of one kind of results: one per configuration, and packs of many of them.

A file is named by its `trial_id` and appears whole or not at all (see `storage`). On a disk, `PACK` of them at a time
are packed into one, `packed-N.parquet`; the packed folder takes the place of the old one in a single step, so that
readers see the old folder or the new one and never a part of both.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.store.disk_folder import DiskFolder, sync_folder
from qdtune.store.folder import Folder
from qdtune.store.parquet import DamagedError, check_rows, merge, parse, to_bytes

PACK = 500  # configurations per packed file: few files to read, and damage to one costs no more than these
AGAIN = 5  # how often a reader looks again where files were packed under its eyes


class Packs:
    """The files of one kind in a run folder.

    Every method raises `StorageError` where the folder cannot be read or written, and `NewerSchemaError` where a file
    was written by a newer qdtune. What writes is to be called under the run folder's lock.

    Args:
        folder: the run folder.
        kind: the folder within it, `trials` or `history`.
        schema: of the rows.
    """

    def __init__(self, folder: Folder, kind: str, schema: pa.Schema) -> None:
        self.folder, self.kind, self.schema = folder, kind, schema
        self._packs: dict[str, str] | None = None  # trial_id -> the pack that holds it, once that is asked
        self._loose: dict[str, pa.Table] = {}  # written by us and not yet packed

    @property
    def loose(self) -> int:
        """How many were written through this object and are not packed yet."""
        return len(self._loose)

    def ids(self) -> set[str]:
        """The trials that have a result, whatever it is; no single file is opened."""
        return {file.removesuffix(".parquet") for file in self._files() if not _is_pack(file)} | self._packed().keys()

    def read(self, ids: Collection[str] | None = None) -> tuple[pa.Table, list[str]]:
        """All rows, or those of `ids`, with columns unknown to the schema last; and a line for each damaged file."""
        wanted = None if ids is None else set(ids)
        for _ in range(AGAIN):
            files = self._files()
            if wanted is not None:
                files = [file for file in files if _is_pack(file) or file.removesuffix(".parquet") in wanted]
            contents = list(self.folder.read_files([f"{self.kind}/{file}" for file in files]))
            if None not in contents:  # else some were packed since they were listed: look again
                break
        tables, damaged, merged = [self.schema.empty_table()], [], self.schema
        for file, data in zip(files, contents, strict=True):
            if data is None:
                continue
            try:
                table = self._table(file, data)
                merged = merge(merged, table.schema, self.schema)
            except DamagedError as error:
                damaged.append(f"{self._name(file)}: {error}")
            else:
                if wanted is not None and _is_pack(file):
                    table = table.filter(pc.is_in(table["trial_id"], pa.array(sorted(wanted), pa.string())))
                tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive"), damaged

    def file_of(self, trial_id: str) -> str:
        """The file that holds a trial, or would."""
        return self._packed().get(trial_id, f"{trial_id}.parquet")

    def one(self, trial_id: str) -> pa.Table | None:
        """The rows of the file that holds a trial, with the file's metadata; None where there is none.

        Raises:
            DamagedError: it cannot be believed.
        """
        file = self.file_of(trial_id)
        data = self.folder.read_file(f"{self.kind}/{file}")
        return None if data is None else self._table(file, data, whole=True)

    def write(self, trial_id: str, table: pa.Table) -> None:
        """Commits the rows of a trial in place of any earlier ones."""
        self._unpack(trial_id)
        self.folder.write_file(f"{self.kind}/{trial_id}.parquet", to_bytes(table))
        self._loose[trial_id] = table

    def set_aside(self, file: str) -> None:
        """Renames a file to `FILE.damaged`, so that it is kept but counts no more."""
        self.folder.rename_file(f"{self.kind}/{file}", f"{self.kind}/{file}.damaged")

    def set_damaged_aside(self) -> list[str]:
        """Sets every damaged file aside; a line for each."""
        lines = []
        for file in self._files():
            try:
                self._table(file, self.folder.read_file(f"{self.kind}/{file}") or b"")
            except DamagedError as error:
                self.set_aside(file)
                lines.append(f"{self._name(file)}: {error}")
        self._packs = None
        return lines

    # --- packs, on a disk

    def clear(self) -> None:
        """Removes what a launch that was killed while packing left: the old folder after the step, else a new one."""
        if isinstance(self.folder, DiskFolder):
            shutil.rmtree(self._staging(self.folder), ignore_errors=True)

    def pack(self) -> bool:
        """Packs what lies in single files, if these are `PACK` or more; whether it did. Only on a disk that can."""
        files = self._files()
        singles = [file for file in files if not _is_pack(file)]
        if not isinstance(self.folder, DiskFolder) or len(singles) < PACK:
            return False
        groups: dict[tuple[tuple[bytes, bytes], ...], list[pa.Table]] = {}  # by provenance, which is one per file
        gone = set()
        for file in singles:
            table = self._loose.get(file.removesuffix(".parquet"))
            if table is None:
                with contextlib.suppress(DamagedError):  # stays where it is
                    table = self._table(file, self.folder.read_file(f"{self.kind}/{file}") or b"", whole=True)
            if table is not None and table.schema.names == self.schema.names:
                groups.setdefault(tuple(sorted((table.schema.metadata or {}).items())), []).append(table)
                gone.add(file)
        chunks = [pa.concat_tables(g[k : k + PACK]) for g in groups.values() for k in range(0, len(g), PACK)]
        number = max((int(_number(file)) for file in files if _is_pack(file)), default=0)
        packs = {f"packed-{n}.parquet": table for n, table in enumerate(chunks, number + 1)}
        self._loose.clear()
        swapped = self._swap(self.folder, gone, packs)
        if swapped and self._packs is not None:  # to read all packs again would take ever longer
            for name, table in packs.items():
                self._packs |= dict.fromkeys(table["trial_id"].unique().to_pylist(), name)
        return swapped

    def _swap(self, run: DiskFolder, gone: set[str], packs: dict[str, pa.Table]) -> bool:
        """Puts a folder with the packs, and without the files in them, in the place of ours; whether it did."""
        staging, folder = self._staging(run), run.root / self.kind
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            for name in set(os.listdir(folder)) - gone:
                os.link(folder / name, staging / name)
            for name, table in packs.items():
                DiskFolder(staging).write_file(name, to_bytes(table))
            sync_folder(staging)
            swapped = _exchange(staging, folder)
            sync_folder(folder.parent)
        except OSError:  # a full disk, or one that knows no links: what is there is as good
            swapped = False
        shutil.rmtree(staging, ignore_errors=True)
        return swapped

    def _staging(self, run: DiskFolder) -> Path:
        return run.root / f".{self.kind}.packing"

    def _unpack(self, trial_id: str) -> None:
        """Takes a trial out of its pack, before another result is written; killed in between, it runs again."""
        if (pack := self._packed().pop(trial_id, None)) is None:
            return
        with contextlib.suppress(DamagedError):  # then nothing of it counts
            table = self._table(pack, self.folder.read_file(f"{self.kind}/{pack}") or b"", whole=True)
            rest = table.filter(pc.not_equal(table["trial_id"], trial_id))
            self.folder.write_file(f"{self.kind}/{pack}", to_bytes(rest))

    def _packed(self) -> dict[str, str]:
        """trial_id -> the pack that holds it."""
        if self._packs is None:
            found: dict[str, str] = {}
            for pack in filter(_is_pack, self._files()):
                with contextlib.suppress(DamagedError):
                    table = self._table(pack, self.folder.read_file(f"{self.kind}/{pack}") or b"")
                    found |= dict.fromkeys(table["trial_id"].unique().to_pylist(), pack)
            self._packs = found
        return self._packs

    # --- files

    def _files(self) -> list[str]:
        return [file for file in self.folder.list_files(self.kind) if file.endswith(".parquet") and file[0] != "."]

    def _name(self, file: str) -> str:
        return self.folder.full_name(f"{self.kind}/{file}")

    def _table(self, file: str, data: bytes, whole: bool = False) -> pa.Table:
        """The rows in a file's bytes, checked; `whole` with its metadata."""
        table = parse(data, self._name(file), self.schema, whole)
        check_rows(table, None if _is_pack(file) else file.removesuffix(".parquet"))
        return table


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
