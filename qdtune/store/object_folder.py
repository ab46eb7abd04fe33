"""A folder in an object store, under a URL such as s3://bucket/prefix.

An object appears once its upload is complete, so a file is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone

from pyarrow import fs

from qdtune.store.folder import (
    Folder,
    RunInUse,
    describe_process,
    location_errors,
    storage_errors,
    visible_names,
)

READERS = 16  # threads that read objects: an object store answers slowly, but answers many requests at once
# Seconds: how often the holder of a lock renews it, and how old an unrenewed lock must be to count as free.
RENEW_S, STALE_S = 20.0, 90.0


class ObjectFolder(Folder):
    """A folder in an object store."""

    @property
    def where(self) -> str:
        return self.shown

    def read_file(self, file: str) -> bytes | None:
        with storage_errors(self.full_name(file)):
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
        path = f"{self.path}/{within}".rstrip("/")
        with storage_errors(self.full_name(within)):
            found = self.filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return sorted(info.base_name for info in found if info.is_file)

    def list_paths(self) -> list[str]:
        with storage_errors(self):
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
            self._read_server_time()

    def _read_server_time(self) -> datetime:
        """The clock of the object store, because the clocks of two machines may differ."""
        path = f"{self.path}/.probe-{secrets.token_hex(8)}"
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(b"probe")
        try:
            now: datetime = self.filesystem.get_file_info(path).mtime
        finally:
            self.filesystem.delete_file(path)
        return now

    def is_in_use(self) -> bool:
        found = self.filesystem.get_file_info(f"{self.path}/.lock")
        return bool(found.is_file and (datetime.now(timezone.utc) - found.mtime).total_seconds() < STALE_S)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch: a thread renews an object as long as its process lives.

        An object store has no lock that a kernel frees, so a killed launch still holds the folder for `STALE_S`. Two
        launches that both find it free at the same moment may both continue until one sees the name of the other.
        That duplicates work, but loses no result, because both write the same files.

        Raises:
            RunInUse: another process holds it.
            StorageError: the folder cannot be written.
        """
        path, name = f"{self.path}/.lock", f"{describe_process()} ({secrets.token_hex(8)})"
        with storage_errors(path):
            found = self.filesystem.get_file_info(path)
            if found.is_file:
                silent = (self._read_server_time() - found.mtime).total_seconds()
                if silent < STALE_S:
                    holder = (self.read_file(".lock") or b"").decode(errors="replace").strip()
                    raise RunInUse(
                        f"one launch may use {self} at a time, but it is held by {holder}, last seen {silent:.0f} s "
                        f"ago: wait for its end, or, if it was killed, until {STALE_S:.0f} s have passed"
                    )
            self.write_file(".lock", name.encode())
        released = threading.Event()
        renewer = threading.Thread(target=self._renew_lock, args=(name, released), daemon=True)
        renewer.start()
        try:
            yield
        finally:
            released.set()
            renewer.join()
            with contextlib.suppress(OSError):
                if self.read_file(".lock") == name.encode():
                    self.filesystem.delete_file(path)

    def _renew_lock(self, name: str, released: threading.Event) -> None:
        while not released.wait(RENEW_S):
            with contextlib.suppress(OSError):  # a store that keeps failing shows up when results are written
                if self.read_file(".lock") not in (name.encode(), None):
                    os.kill(os.getpid(), 15)  # another launch took over the lock: end in order
                    return
                self.write_file(".lock", name.encode())
