"""The interface of a folder that holds files, the errors of folders, and the rules of their locations.

A folder lies on a disk (`disk_folder`) or in an object store (`object_folder`); `open_folder` picks the right one.
Both go through `pyarrow.fs`, and in both a file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timezone
from urllib.parse import urlsplit

from pyarrow import fs

from qdtune.messages import one_line

SCHEMES = ("s3", "gs", "abfs", "abfss")


class RunInUse(ValueError):  # noqa: N818 - the state is the message
    """Another launch holds this run folder."""


class StorageError(OSError):
    """The run folder cannot be read or written; committed files are unchanged."""


class ReadOnlyError(StorageError):
    """The run folder can be read, but not written."""


class UnreadableError(StorageError):
    """A file or folder exists, but it cannot be read."""


class LinkError(StorageError):
    """A file of the run folder is a link that is not followed."""


class LocationError(ValueError):
    """A location that cannot hold run folders: it is no valid path or URL, or it cannot be reached."""


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether this is the URL of an object store."""
    return "://" in os.fspath(where)


def join_location(where: str | os.PathLike[str], name: str) -> str:
    """The location called `name` inside another one: a path inside a path, a URL inside a URL."""
    return f"{os.fspath(where).rstrip('/')}/{name}" if is_url(where) else os.path.join(where, name)


@contextlib.contextmanager
def storage_errors(path: object) -> Iterator[None]:
    """Turns every OSError of its block into a StorageError that names `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        kind = ReadOnlyError if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM) else StorageError
        raise _in_words(kind, path, "readable and writable", error) from error


@contextlib.contextmanager
def read_errors(path: object) -> Iterator[None]:
    """Turns every OSError of its block, which only reads, into an UnreadableError that names `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _in_words(UnreadableError, path, "readable", error) from error


def _in_words(kind: type[StorageError], path: object, what: str, error: OSError) -> StorageError:
    """The error of this kind, in one line."""
    reason = " ".join(str(error.strerror or error).split())
    return kind(f"{one_line(str(path))} must be {what}, got {reason[:300]}")


def check_location(where: str | os.PathLike[str]) -> None:
    """Returns if this is a path, or a URL of a bucket and prefix alone. It opens nothing.

    Raises:
        LocationError: the URL has an unknown scheme, has no bucket, or holds credentials.
    """
    if re.match(rf"({'|'.join(SCHEMES)}):/?(?!/)", os.fspath(where)):
        raise LocationError(f"{where} must start with {os.fspath(where).partition(':')[0]}://")
    if not is_url(where):
        return
    url = urlsplit(os.fspath(where))
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.scheme not in SCHEMES:
        raise LocationError(f"{shown} must be a path or start with {', '.join(f'{s}://' for s in SCHEMES)}")
    if "@" in url.netloc or url.query or url.fragment:
        raise LocationError(f"{shown} must be nothing but bucket and prefix: credentials come from the environment")
    if not url.netloc:
        raise LocationError(f"{shown} must name a bucket, as in {url.scheme}://bucket/prefix")


@contextlib.contextmanager
def location_errors(shown: str) -> Iterator[None]:
    """Turns every error of a file system in its block into a LocationError that names `shown`."""
    try:
        yield
    # Arrow's own errors are ValueError, as for a malformed endpoint, and NotImplementedError, for a file system that
    # it was built without.
    except (OSError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LocationError(
            f"{shown} must be readable and writable, got {reason}: see its bucket, and the credentials and "
            "endpoint in the environment"
        ) from None


class Folder(ABC):
    """A folder that holds files.

    Args:
        filesystem: that holds it.
        path: of the folder in this file system.
        shown: its name in messages.

    Attributes:
        notes: lines for the user about what its storage cannot do.
    """

    def __init__(self, filesystem: fs.FileSystem, path: str, shown: str) -> None:
        self.filesystem, self.path, self.shown = filesystem, path, shown
        self.notes: list[str] = []

    def __str__(self) -> str:
        return one_line(self.shown)

    @property
    @abstractmethod
    def where(self) -> str:
        """The location to give to `open_folder`; it works from any current folder."""

    def full_name(self, file: str) -> str:
        """The name of a file in messages."""
        return one_line(f"{self.shown}/{file}")

    def describe_link(self, file: str) -> str | None:
        """Why a file is not read because it is a link, as the end of a message; None if it can be read."""
        return None

    @abstractmethod
    def read_file(self, file: str) -> bytes | None:
        """The whole file; None if it does not exist.

        Raises:
            LinkError: it is a link that is not followed.
            UnreadableError: it cannot be read.
        """

    @abstractmethod
    def read_files(self, files: Collection[str]) -> Iterator[bytes | None]:
        """The result of `read_file` for each file, in their order."""

    @abstractmethod
    def write_file(self, file: str, data: bytes) -> None:
        """Makes the file hold the data, whole or not at all, and durable before it returns.

        Raises:
            StorageError: it cannot be written.
        """

    @abstractmethod
    def list_files(self, within: str = "") -> list[str]:
        """The sorted names of the files in the folder, or in its subfolder `within`; empty if that does not exist.

        Raises:
            UnreadableError: it cannot be listed.
        """

    @abstractmethod
    def list_sizes(self, within: str) -> dict[str, int]:
        """The files of a subfolder as `list_files` names them, with their bytes; the oldest first.

        Raises:
            UnreadableError: it cannot be listed.
        """

    @abstractmethod
    def list_paths(self) -> list[str]:
        """The sorted names of all files in the folder and its subfolders, as `read_file` takes them.

        Names that start with a dot are left out.

        Raises:
            UnreadableError: it cannot be listed.
        """

    def modified_at(self, file: str) -> datetime | None:
        """When the file was written, by the clock of the storage; None if it does not exist.

        Raises:
            StorageError: the storage cannot be asked.
        """
        with storage_errors(self.full_name(file)):
            found = self.filesystem.get_file_info(f"{self.path}/{file}")
            return found.mtime if found.is_file else None

    def rename_file(self, old: str, new: str) -> None:
        """Gives a file another name.

        Raises:
            StorageError: the file cannot be renamed.
        """
        with storage_errors(self.full_name(old)):
            self.filesystem.move(f"{self.path}/{old}", f"{self.path}/{new}")

    def remove_file(self, file: str) -> None:
        """Removes a file if it exists.

        Raises:
            StorageError: it cannot be removed.
        """
        with storage_errors(self.full_name(file)), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(f"{self.path}/{file}")

    @abstractmethod
    def exists(self) -> bool:
        """Whether the folder exists; in an object store, whether it holds a file.

        Raises:
            StorageError: it cannot be listed.
        """

    @abstractmethod
    def move_to(self, other: Folder) -> None:
        """Renames the folder.

        Raises:
            StorageError: it cannot be renamed.
        """

    @abstractmethod
    def probe(self) -> None:
        """Checks that an object store can be written, read and deleted from; a disk is checked by the preflight.

        Raises:
            LocationError: one of the three fails.
        """

    @abstractmethod
    def is_in_use(self) -> bool:
        """Whether a launch seems to hold the folder now; the caller does not hold it."""

    @abstractmethod
    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Holds the folder for one launch.

        Raises:
            RunInUse: another process holds it; the message names its pid, host and start.
            StorageError: the folder cannot be written.
        """


def visible_names(names: Iterable[str]) -> list[str]:
    """The names without a part that starts with a dot, sorted."""
    return sorted(name for name in names if not re.search(r"(^|/)\.", name))


def describe_process() -> str:
    """This process in words, for the content of a lock: `pid 1 on host a since 2026-01-01T00:00:00+00:00`."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return f"pid {os.getpid()} on host {socket.gethostname()} since {now}"
