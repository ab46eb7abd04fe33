"""A folder on a disk.

A file is written under a name that starts with a dot, fsynced and renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
from collections.abc import Collection, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from pyarrow import fs

from qdtune.store.folder import (
    Folder,
    LinkError,
    RunInUse,
    describe_process,
    read_errors,
    storage_errors,
    visible_names,
)
from qdtune.store.heartbeat import STALE_S, check_free, hold_by_heartbeat, seems_held

# Answers of network file systems, such as CIFS, drvfs and NFS without its lock service, that lack a call.
NO_FOLDER_SYNC = (errno.EINVAL, errno.EIO, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
SYNC_NOTE = "this storage cannot make new names of files durable: a power cut may lose the latest results"
LOCK_NOTE = f"a launch that is killed holds its run folder for {STALE_S:.0f} more seconds"
IS_LINK = "is a link that leads"  # how `describe_link` begins
MEND_LINK = "put the file itself there, by git annex unlock, dvc unprotect or cp -L"
_TEMPORARY = re.compile(r"\..*\.\d+\.tmp")


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

    def describe_link(self, file: str) -> str | None:
        """A link is followed if it leads to a file in the folder that holds the run folder. Others lead anywhere."""
        path = Path(self.path, file)
        folders = itertools.takewhile(lambda folder: folder != Path(self.path), path.parents)
        if not (path.is_symlink() or any(folder.is_symlink() for folder in folders)):
            return None
        real = os.path.realpath(path)
        if not os.path.exists(real):
            return f"{IS_LINK} nowhere ({MEND_LINK})"
        if any(Path(real).is_relative_to(runs) for runs in self._list_runs_folders()):
            return None
        return f"{IS_LINK} outside {Path(self.path).parent} ({MEND_LINK})"

    def _list_runs_folders(self) -> list[str]:
        """The folders that hold the run folder: by its path, and by where that leads."""
        return [os.path.realpath(Path(self.path).parent), os.path.dirname(os.path.realpath(self.path))]

    def read_file(self, file: str) -> bytes | None:
        with read_errors(self.full_name(file)), contextlib.suppress(FileNotFoundError):
            if why := self.describe_link(file):
                raise LinkError(f"{self.full_name(file)} {why}")
            return (self.root / file).read_bytes()
        return None

    def list_files(self, within: str = "") -> list[str]:
        with read_errors(self.root / within), contextlib.suppress(FileNotFoundError):
            entries = os.scandir(self.root / within)  # a link that leads nowhere is a file that cannot be read
            return sorted(e.name for e in entries if e.is_file() or (e.is_symlink() and not e.is_dir()))
        return []

    def list_sizes(self, within: str) -> dict[str, int]:
        with read_errors(self.root / within):
            stats = {name: (self.root / within / name).lstat() for name in self.list_files(within)}
        return {name: stat.st_size for name, stat in sorted(stats.items(), key=lambda one: one[1].st_mtime_ns)}

    def list_paths(self) -> list[str]:
        with read_errors(self.root):  # not by pyarrow, because it follows links
            found = [Path(folder) / file for folder, _, files in os.walk(self.root) for file in files]
            names = visible_names(path.relative_to(self.root).as_posix() for path in found)
            return [name for name in names if self.describe_link(name) is None]

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
            if not sync_folder(path.parent) and SYNC_NOTE not in self.notes:
                self.notes.append(SYNC_NOTE)

    # Not by pyarrow, which refuses names that are not UTF-8.

    def modified_at(self, file: str) -> datetime | None:
        with storage_errors(self.full_name(file)), contextlib.suppress(FileNotFoundError):
            return datetime.fromtimestamp((self.root / file).stat().st_mtime, timezone.utc)
        return None

    def rename_file(self, old: str, new: str) -> None:
        with storage_errors(self.full_name(old)):
            os.replace(self.root / old, self.root / new)

    def remove_file(self, file: str) -> None:
        with storage_errors(self.full_name(file)):
            (self.root / file).unlink(missing_ok=True)

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
        except OSError as error:  # there are no locks, or no lock file, or no folder
            return error.errno in NO_LOCKS and seems_held(self)
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
                    check_free(self)  # of a machine that has no locks on this storage
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read().strip() or "a launch that is just starting"
                    raise RunInUse(
                        f"one launch may use {self} at a time, but it is held by {holder}: "
                        "wait for its end, or stop it and run the same command again"
                    ) from None
                except OSError as error:
                    if error.errno not in NO_LOCKS:
                        raise
                    stack.enter_context(hold_by_heartbeat(self))
                    self.notes.append(f"this storage has no file locks: {LOCK_NOTE}")
                else:
                    file.truncate(0)
                    file.write(f"{describe_process()}\n")
                    file.flush()
                    stack.callback(_empty, file)  # because nobody holds the folder any more
                for leftover in self.root.glob("**/.*.tmp"):
                    if _TEMPORARY.fullmatch(leftover.name):  # others, such as Syncthing, have temporary files, too
                        leftover.unlink()
            yield


def _empty(file: TextIO) -> None:
    with contextlib.suppress(OSError):
        file.truncate(0)


def sync_folder(folder: Path) -> bool:
    """Makes the names in a folder durable; False if its storage cannot do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        return False
    finally:
        os.close(descriptor)
    return True
