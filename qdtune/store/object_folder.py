"""A folder in an object store, under a URL such as s3://bucket/prefix.

An object appears once its upload is complete, so a file is there whole or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

from pyarrow import fs

from qdtune.store.folder import Folder, location_errors, read_errors, storage_errors, visible_names
from qdtune.store.heartbeat import hold_by_heartbeat, read_server_time, seems_held

READERS = 16  # threads that read objects: an object store answers slowly, but answers many requests at once


class ObjectFolder(Folder):
    """A folder in an object store."""

    @property
    def where(self) -> str:
        return self.shown

    def read_file(self, file: str) -> bytes | None:
        with read_errors(self.full_name(file)):
            try:
                stream = self.filesystem.open_input_file(f"{self.path}/{file}")
            except FileNotFoundError:
                return None
            with stream:
                return bytes(stream.read())

    def read_files(self, files: Collection[str]) -> Iterator[bytes | None]:
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(self.read_file, files)

    def write_file(self, file: str, data: bytes) -> None:
        path = f"{self.path}/{file}"
        with storage_errors(self.full_name(file)), self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def list_files(self, within: str = "") -> list[str]:
        return sorted(info.base_name for info in self._list_within(within))

    def list_sizes(self, within: str) -> dict[str, int]:
        found = sorted(self._list_within(within), key=lambda info: info.mtime_ns or 0)
        return {info.base_name: info.size for info in found}

    def _list_within(self, within: str) -> list[fs.FileInfo]:
        """The objects directly in a subfolder."""
        path = f"{self.path}/{within}".rstrip("/")
        with read_errors(self.full_name(within)):
            found = self.filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return [info for info in found if info.is_file]

    def list_paths(self) -> list[str]:
        with read_errors(self):
            return visible_names(info.path.removeprefix(f"{self.path}/") for info in self._list_objects())

    def exists(self) -> bool:
        with storage_errors(self):
            return bool(self._list_objects())

    def move_to(self, other: Folder) -> None:
        """Renames the folder, one file after the other.

        Raises:
            StorageError: a file cannot be renamed.
        """
        with storage_errors(self):
            for info in self._list_objects():
                self.filesystem.move(info.path, other.path + info.path.removeprefix(self.path))

    def _list_objects(self) -> list[fs.FileInfo]:
        """The objects in the folder and its subfolders."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        return [info for info in self.filesystem.get_file_info(selector) if info.is_file]

    def probe(self) -> None:
        with location_errors(self.shown):
            read_server_time(self)

    def is_in_use(self) -> bool:
        return seems_held(self)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder for one launch by a heartbeat, because an object store has no lock that a kernel frees.

        Raises:
            RunInUse: another process holds it.
            StorageError: the folder cannot be written.
        """
        return hold_by_heartbeat(self)
