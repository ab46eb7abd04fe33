"""The Parquet files of one kind of results: single files, one per configuration, and packs of many configurations.

A single file is named by its `trial_id` and appears whole or not at all (see `folder`). On a disk, `PACK_SIZE` of
them at a time are packed into one file, `packed-N.parquet`. The packed folder replaces the old one in a single
step, so readers see the old folder or the new one and never a mixture.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.store.disk_folder import DiskFolder, sync_folder
from qdtune.store.folder import Folder
from qdtune.store.parquet import DamagedError, check_rows, merge_schemas, parse_table, to_bytes

# Configurations per pack. Few files are fast to read, and a damaged pack loses no more configurations than this.
PACK_SIZE = 500
_SINGLE = re.compile(r"[0-9A-Za-z_]+\.parquet")  # named by a `trial_id`
READ_ATTEMPTS = 5  # a reader lists the files again if they were packed while it read


class Damage(NamedTuple):
    """A damaged file.

    Attributes:
        kind: the folder within the run folder, `trials` or `history`.
        file: its name in this folder.
        line: its full name and what is wrong with it.
    """

    kind: str
    file: str
    line: str

    @property
    def trial_id(self) -> str | None:
        """The trial that the file is named by; None for a pack of many trials."""
        return None if _is_pack(self.file) else self.file.removesuffix(".parquet")


class Packs:
    """The files of one kind in a run folder.

    Every method raises `StorageError` if the folder cannot be read or written, and `NewerSchemaError` if a newer
    qdtune wrote a file. Methods that write must be called under the lock of the run folder.

    Args:
        folder: the run folder.
        kind: the folder within it, `trials` or `history`.
        find_schema: returns the schema of the rows; called when rows are read.

    Attributes:
        left_out: a line for each file that the latest `read_table` left out because it is a link or not ours.
    """

    def __init__(self, folder: Folder, kind: str, find_schema: Callable[[], pa.Schema]) -> None:
        self.folder, self.kind, self._find_schema = folder, kind, find_schema
        self.left_out: list[str] = []
        self._packs: dict[str, str] | None = None  # trial_id -> the pack that holds it; read on demand
        self._singles: dict[str, pa.Table] = {}  # written through this object and not packed yet

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows."""
        return self._find_schema()

    @property
    def n_singles(self) -> int:
        """The number of configurations that were written through this object and are not packed yet."""
        return len(self._singles)

    def ids(self) -> set[str]:
        """The ids of the trials that have a result in any state. Packs are opened, single files are not."""
        return {
            file.removesuffix(".parquet") for file in self._list_files() if not _is_pack(file)
        } | self._find_packs().keys()

    def read_table(self, ids: Collection[str] | None = None) -> tuple[pa.Table, list[str]]:
        """All rows, or the rows of `ids`, unknown columns last, and a line for each damaged file."""
        wanted = None if ids is None else set(ids)
        for _ in range(READ_ATTEMPTS):
            files, self.left_out = self._sort_files()
            if wanted is not None:
                files = [file for file in files if _is_pack(file) or file.removesuffix(".parquet") in wanted]
            contents = list(self.folder.read_files([f"{self.kind}/{file}" for file in files]))
            if None not in contents:  # else some were packed since they were listed
                break
        tables, damaged, merged = [self.schema.empty_table()], [], self.schema
        for file, data in zip(files, contents, strict=True):
            if data is None:
                continue
            try:
                table = self._read_table(file, data)
                merged = merge_schemas(merged, table.schema, self.schema)
            except DamagedError as error:
                damaged.append(f"{self._full_name(file)}: {error}")
            else:
                if wanted is not None and _is_pack(file):
                    table = table.filter(pc.is_in(table["trial_id"], pa.array(sorted(wanted), pa.string())))
                tables.append(table)
        return pa.concat_tables(tables, promote_options="permissive"), damaged

    def file_of(self, trial_id: str) -> str:
        """The name of the file that holds a trial, or that would hold it."""
        return self._find_packs().get(trial_id, f"{trial_id}.parquet")

    def read_file_of(self, trial_id: str) -> pa.Table | None:
        """The rows of the file that holds a trial, with the file's metadata; None if it does not exist.

        Raises:
            DamagedError: the file is damaged.
        """
        file = self.file_of(trial_id)
        data = self.folder.read_file(f"{self.kind}/{file}")
        return None if data is None else self._read_table(file, data, whole=True)

    def write(self, trial_id: str, table: pa.Table) -> None:
        """Commits the rows of a trial; they replace earlier rows."""
        self._unpack(trial_id)
        self.folder.write_file(f"{self.kind}/{trial_id}.parquet", to_bytes(table))
        self._singles[trial_id] = table

    def set_aside(self, file: str) -> None:
        """Renames a file to `FILE.damaged`, so that it is kept but ignored."""
        self.folder.rename_file(f"{self.kind}/{file}", f"{self.kind}/{file}.damaged")

    def find_damaged(self) -> list[Damage]:
        """Every damaged file."""
        found = []
        for file in self._list_files():
            data = self.folder.read_file(f"{self.kind}/{file}")
            try:
                if data is not None:  # else it was packed since
                    self._read_table(file, data)
            except DamagedError as error:
                found.append(Damage(self.kind, file, f"{self._full_name(file)}: {error}"))
        return found

    def set_damaged_aside(self) -> list[str]:
        """Sets every damaged file aside and returns a line for each."""
        found = self.find_damaged()
        for damage in found:
            self.set_aside(damage.file)
        self._packs = None
        return [damage.line for damage in found]

    # --- packs, on a disk

    def remove_staging(self) -> None:
        """Removes the folder that a launch left because it was killed while it packed."""
        if isinstance(self.folder, DiskFolder):
            shutil.rmtree(self._staging_path(self.folder), ignore_errors=True)

    def pack_files(self) -> bool:
        """Packs the single files if there are at least `PACK_SIZE`; whether it did. Only on a disk."""
        files = self._list_files()
        singles = [file for file in files if not _is_pack(file)]
        if not isinstance(self.folder, DiskFolder) or len(singles) < PACK_SIZE:
            return False
        groups: dict[tuple[tuple[bytes, bytes], ...], list[pa.Table]] = {}  # by metadata, because a file has only one
        packed = set()
        for file in singles:
            table = self._singles.get(file.removesuffix(".parquet"))
            if table is None:
                with contextlib.suppress(DamagedError):  # a damaged file stays where it is
                    table = self._read_table(file, self.folder.read_file(f"{self.kind}/{file}") or b"", whole=True)
            if table is not None and table.schema.names == self.schema.names:
                groups.setdefault(tuple(sorted((table.schema.metadata or {}).items())), []).append(table)
                packed.add(file)
        chunks = [
            pa.concat_tables(g[k : k + PACK_SIZE]) for g in groups.values() for k in range(0, len(g), PACK_SIZE)
        ]
        number = max((int(_pack_number(file)) for file in files if _is_pack(file)), default=0)
        packs = {f"packed-{n}.parquet": table for n, table in enumerate(chunks, number + 1)}
        self._singles.clear()
        swapped = self._swap(self.folder, packed, packs)
        if swapped and self._packs is not None:  # cheaper than to read all packs again
            for name, table in packs.items():
                self._packs |= dict.fromkeys(table["trial_id"].unique().to_pylist(), name)
        return swapped

    def _swap(self, run: DiskFolder, packed: set[str], packs: dict[str, pa.Table]) -> bool:
        """Replaces the folder by one with the packs and without the files in them; whether it succeeded."""
        staging, folder = self._staging_path(run), run.root / self.kind
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            for name in set(os.listdir(folder)) - packed:
                os.link(folder / name, staging / name)
            for name, table in packs.items():
                DiskFolder(staging).write_file(name, to_bytes(table))
            sync_folder(staging)
            swapped = _exchange(staging, folder)
            sync_folder(folder.parent)
        except OSError:  # a full disk, or one without hard links: the old folder is complete
            swapped = False
        shutil.rmtree(staging, ignore_errors=True)
        return swapped

    def _staging_path(self, run: DiskFolder) -> Path:
        return run.root / f".{self.kind}.packing"

    def _unpack(self, trial_id: str) -> None:
        """Removes a trial from its pack before a new result is written; if killed in between, it runs again."""
        if (pack := self._find_packs().pop(trial_id, None)) is None:
            return
        with contextlib.suppress(DamagedError):  # a damaged pack is ignored as a whole
            table = self._read_table(pack, self.folder.read_file(f"{self.kind}/{pack}") or b"", whole=True)
            rest = table.filter(pc.not_equal(table["trial_id"], trial_id))
            self.folder.write_file(f"{self.kind}/{pack}", to_bytes(rest))

    def _find_packs(self) -> dict[str, str]:
        """trial_id -> the pack that holds it."""
        if self._packs is None:
            found: dict[str, str] = {}
            for pack in filter(_is_pack, self._list_files()):
                with contextlib.suppress(DamagedError):
                    table = self._read_table(pack, self.folder.read_file(f"{self.kind}/{pack}") or b"")
                    found |= dict.fromkeys(table["trial_id"].unique().to_pylist(), pack)
            self._packs = found
        return self._packs

    # --- files

    def _list_files(self) -> list[str]:
        return self._sort_files()[0]

    def _sort_files(self) -> tuple[list[str], list[str]]:
        """The files that are ours and can be read, and a line for each other file."""
        ours, left_out = [], []
        for file in self.folder.list_files(self.kind):
            if not file.endswith(".parquet") or file[0] == ".":
                continue
            if why := self._describe_foreign(file):
                left_out.append(f"{self._full_name(file)}: {why}")
            else:
                ours.append(file)
        return ours, left_out

    def _describe_foreign(self, file: str) -> str | None:
        """Why a file is left out; None if it is ours and can be read."""
        if not (_is_pack(file) or _SINGLE.fullmatch(file)):
            return "not ours, as the conflict copy of a sync tool"
        return self.folder.describe_link(f"{self.kind}/{file}")

    def _full_name(self, file: str) -> str:
        return self.folder.full_name(f"{self.kind}/{file}")

    def _read_table(self, file: str, data: bytes, whole: bool = False) -> pa.Table:
        """The checked rows in the bytes of a file; with the file's metadata if `whole`."""
        table = parse_table(data, self._full_name(file), self.schema, whole)
        check_rows(table, None if _is_pack(file) else file.removesuffix(".parquet"))
        return table


def _pack_number(file: str) -> str:
    return file.removeprefix("packed-").removesuffix(".parquet")


def _is_pack(file: str) -> bool:
    return file.startswith("packed-") and _pack_number(file).isdecimal()


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE, see renameat2(2)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps the names of two folders in one step; False if the kernel or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(number, os.strerror(number))
