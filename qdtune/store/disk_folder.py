"""A folder on a disk.

A file is written under a name that starts with a dot, fsynced and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pyarrow import fs

from qdtune.store.folder import Folder, RunInUse, describe_process, storage_errors, visible_names


class DiskFolder(Folder):
    """A folder on a disk.

    Args:
        root: its path.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(fs.LocalFileSystem(), os.path.abspath(root), str(root))
        self.root = root

    @property
    def where(self) -> str:
        return self.path

    def read_files(self, files: Collection[str]) -> Iterator[bytes | None]:
        return map(self.read_file, files)

    def read_file(self, file: str) -> bytes | None:
        with storage_errors(self.full_name(file)), contextlib.suppress(FileNotFoundError):
            if (self.root / file).is_symlink():
                return b""  # counts as damaged, because a link may lead anywhere
            return (self.root / file).read_bytes()
        return None

    def list_files(self, within: str = "") -> list[str]:
        with storage_errors(self.root / within), contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self.root / within) if entry.is_file())
        return []

    def list_paths(self) -> list[str]:
        with storage_errors(self.root):  # not by pyarrow, because it follows links
            found = [Path(folder) / file for folder, _, files in os.walk(self.root) for file in files]
            return visible_names(path.relative_to(self.root).as_posix() for path in found if not path.is_symlink())

    def write_file(self, file: str, data: bytes) -> None:
        path = self.root / file
        temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temp, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(temp, path)
            except OSError:
                with contextlib.suppress(OSError):
                    temp.unlink(missing_ok=True)
                raise
            sync_folder(path.parent)  # so that the new name survives a power cut

    def exists(self) -> bool:
        return os.path.lexists(self.root)

    def move_to(self, other: Folder) -> None:
        with storage_errors(self.root):
            os.rename(self.root, other.path)

    def probe(self) -> None:
        pass

    def is_in_use(self) -> bool:
        try:
            with (self.root / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # there is no lock file, or no folder
            return False
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder, holds it for one launch, and removes the temporary files of a killed launch.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """
        path = self.root / ".lock"
        with contextlib.ExitStack() as stack:
            with storage_errors(path):
                self.root.mkdir(parents=True, exist_ok=True)
                # Never removed, because another launch could then lock a second file of the same name.
                file = stack.enter_context(path.open("a+"))
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
                file.write(f"{describe_process()}\n")
                file.flush()
                for leftover in self.root.glob("**/.*.tmp"):
                    leftover.unlink()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(0)  # because nobody holds the folder any more


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
