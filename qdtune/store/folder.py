"""Where a run folder lies, a local path or an object store, and how a file gets there: whole or not at all.

Everything goes through `pyarrow.fs`, but for what a local disk needs beyond it: a file is written under a dot name,
fsynced and renamed. An object store shows an object when its upload is complete, which is the same promise.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import socket
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

READERS = 16  # objects read at a time: an object store answers slowly, but many at once
BEAT_S, STALE_S = 20.0, 90.0  # how often the holder of an object store's lock says so; when its silence frees it
SCHEMES = ("s3", "gs", "abfs", "abfss")


class RunInUse(ValueError):  # noqa: N818 - the state is the message
    """Another launch holds this run folder."""


class StorageError(OSError):
    """The run folder cannot be read or written; what was committed is as it was."""


class LocationError(ValueError):
    """No place for run folders: not what a path or URL can be, or it cannot be reached."""


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether this names an object store."""
    return "://" in os.fspath(where)


def child(where: str | os.PathLike[str], name: str) -> str:
    """The place called `name` within another: a path or a URL, as that one is."""
    return f"{os.fspath(where).rstrip('/')}/{name}" if is_url(where) else os.path.join(where, name)


@contextlib.contextmanager
def storage_errors(path: object) -> Iterator[None]:
    """Any OSError within becomes a StorageError that names `path`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise StorageError(f"{path} must be readable and writable, got {reason[:300]}") from error


def check_location(where: str | os.PathLike[str]) -> None:
    """Returns where this is a path, or a URL that names an object store and nothing else; nothing is opened.

    Raises:
        LocationError: no such kind of URL, credentials in it, no bucket.
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


def open_folder(where: str | os.PathLike[str]) -> Folder:
    """The folder at a path, or under a URL such as s3://bucket/prefix; made when something is written.

    Credentials and the endpoint of an object store come from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL ...), for what stands in a URL ends up in logs.

    Raises:
        LocationError: as of `check_location`, or it cannot be opened.
    """
    check_location(where)
    if not is_url(where):
        return LocalFolder(Path(where))
    url, shown = urlsplit(os.fspath(where)), os.fspath(where)
    with _reachable(shown):
        if url.scheme == "s3":
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            store = fs.S3FileSystem(region=region, endpoint_override=endpoint, connect_timeout=5, request_timeout=20)
        else:
            store, _ = fs.FileSystem.from_uri(shown)
    return Folder(store, f"{url.netloc}{url.path}".rstrip("/"), shown.rstrip("/"))


@contextlib.contextmanager
def _reachable(shown: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LocationError(
            f"{shown} must be readable and writable, got {reason}: see its bucket, and the credentials and "
            "endpoint in the environment"
        ) from None


class Folder:
    """A folder in an object store.

    Args:
        store: the file system.
        path: the folder in it.
        shown: what messages call it.
    """

    def __init__(self, store: fs.FileSystem, path: str, shown: str) -> None:
        self.store, self.path, self.shown = store, path, shown

    @property
    def where(self) -> str:
        """What `open_folder` opens it by, from any current folder."""
        return self.shown

    def __str__(self) -> str:
        return self.shown

    def name(self, file: str) -> str:
        """What messages call a file of the folder."""
        return f"{self.shown}/{file}"

    def read(self, file: str) -> bytes | None:
        """The whole file, None where there is none.

        Raises:
            StorageError: it cannot be read.
        """
        with storage_errors(self.name(file)):
            try:
                stream = self.store.open_input_file(f"{self.path}/{file}")
            except FileNotFoundError:
                return None
            with stream:
                return bytes(stream.read())

    def read_all(self, files: Collection[str]) -> Iterator[bytes | None]:
        """What `read` gives for each file, in their order."""
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(self.read, files)

    def write(self, file: str, data: bytes) -> None:
        """Makes the file hold the data, whole or not at all, and durable before it returns.

        Raises:
            StorageError: it cannot be written.
        """
        with storage_errors(self.name(file)), self.store.open_output_stream(f"{self.path}/{file}") as stream:
            stream.write(data)

    def files(self, within: str = "") -> list[str]:
        """The names of the files in the folder, or in the one `within` it, sorted; none where it does not exist.

        Raises:
            StorageError: it cannot be listed.
        """
        path = f"{self.path}/{within}".rstrip("/")
        with storage_errors(self.name(within)):
            found = self.store.get_file_info(fs.FileSelector(path, allow_not_found=True))
            return sorted(info.base_name for info in found if info.is_file)

    def paths(self) -> list[str]:
        """The names of all files in the folder and below, as `read` takes them, sorted; none that starts with a dot.

        Raises:
            StorageError: it cannot be listed.
        """
        with storage_errors(self):
            names = [info.path.removeprefix(f"{self.path}/") for info in self._all() if info.is_file]
        return sorted(name for name in names if not re.search(r"(^|/)\.", name))

    def rename(self, old: str, new: str) -> None:
        """Gives a file another name.

        Raises:
            StorageError: that is not possible.
        """
        with storage_errors(self.name(old)):
            self.store.move(f"{self.path}/{old}", f"{self.path}/{new}")

    def remove(self, file: str) -> None:
        """Removes a file, if there is one.

        Raises:
            StorageError: that is not possible.
        """
        with storage_errors(self.name(file)), contextlib.suppress(FileNotFoundError):
            self.store.delete_file(f"{self.path}/{file}")

    def exists(self) -> bool:
        """Whether there is a file in it.

        Raises:
            StorageError: that cannot be seen.
        """
        with storage_errors(self):
            return any(info.is_file for info in self._all())

    def move_to(self, other: Folder) -> None:
        """Renames the folder, one file after the other.

        Raises:
            StorageError: that is not possible.
        """
        with storage_errors(self):
            for info in self._all():
                if info.is_file:
                    self.store.move(info.path, other.path + info.path.removeprefix(self.path))

    def _all(self) -> list[fs.FileInfo]:
        found: list[fs.FileInfo] = self.store.get_file_info(
            fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        )
        return found

    def probe(self) -> None:
        """Writes, reads and deletes a small file.

        Raises:
            LocationError: that is not possible.
        """
        with _reachable(self.shown):
            self._server_time()

    def _server_time(self) -> datetime:
        """The clock of the store: of two machines, one may be wrong."""
        path = f"{self.path}/.probe-{secrets.token_hex(8)}"
        with self.store.open_output_stream(path) as stream:
            stream.write(b"probe")
        try:
            now: datetime = self.store.get_file_info(path).mtime
        finally:
            self.store.delete_file(path)
        return now

    def in_use(self) -> bool:
        """Whether a launch holds the folder now, as far as that can be told without holding it."""
        found = self.store.get_file_info(f"{self.path}/.lock")
        return bool(found.is_file and (datetime.now(timezone.utc) - found.mtime).total_seconds() < STALE_S)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder for one launch: an object that is renewed as long as its writer lives.

        An object store has no lock that a kernel frees, so a launch that was killed holds it for `STALE_S` more. Two
        that find it free in the same moment may both go on until one of them sees the other's name: that costs
        double work, but no result, for both write the same files.

        Raises:
            RunInUse: another process holds it.
            StorageError: the folder cannot be written.
        """
        path, name = f"{self.path}/.lock", f"{_me()} ({secrets.token_hex(8)})"
        with storage_errors(path):
            found = self.store.get_file_info(path)
            if found.is_file:
                silent = (self._server_time() - found.mtime).total_seconds()
                if silent < STALE_S:
                    holder = (self.read(".lock") or b"").decode(errors="replace").strip()
                    raise RunInUse(
                        f"one launch may use {self} at a time, but it is held by {holder}, last seen {silent:.0f} s "
                        f"ago: wait for its end, or, if it was killed, until {STALE_S:.0f} s have passed"
                    )
            self.write(".lock", name.encode())
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(name, over), daemon=True)
        beat.start()
        try:
            yield
        finally:
            over.set()
            beat.join()
            with contextlib.suppress(OSError):
                if self.read(".lock") == name.encode():
                    self.store.delete_file(path)

    def _beat(self, name: str, over: threading.Event) -> None:
        while not over.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a store that fails for longer is told by what has to be written
                if self.read(".lock") not in (name.encode(), None):
                    os.kill(os.getpid(), 15)  # somebody took it for dead: end in order
                    return
                self.write(".lock", name.encode())


class LocalFolder(Folder):
    """A folder on a disk."""

    def __init__(self, root: Path) -> None:
        super().__init__(fs.LocalFileSystem(), os.path.abspath(root), str(root))
        self.root = root

    @property
    def where(self) -> str:
        return self.path

    def read_all(self, files: Collection[str]) -> Iterator[bytes | None]:
        return map(self.read, files)

    def read(self, file: str) -> bytes | None:
        with storage_errors(self.name(file)), contextlib.suppress(FileNotFoundError):
            if (self.root / file).is_symlink():
                return b""  # as good as damaged: it may lead anywhere
            return (self.root / file).read_bytes()
        return None

    def files(self, within: str = "") -> list[str]:
        with storage_errors(self.root / within), contextlib.suppress(FileNotFoundError):
            return sorted(entry.name for entry in os.scandir(self.root / within) if entry.is_file())
        return []

    def paths(self) -> list[str]:
        with storage_errors(self.root):  # walked by hand, for links are not followed
            found = [Path(folder) / file for folder, _, files in os.walk(self.root) for file in files]
            names = [path.relative_to(self.root).as_posix() for path in found if not path.is_symlink()]
        return sorted(name for name in names if not re.search(r"(^|/)\.", name))

    def write(self, file: str, data: bytes) -> None:
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
            sync(path.parent)  # the new name survives a power cut, too

    def exists(self) -> bool:
        return os.path.lexists(self.root)

    def move_to(self, other: Folder) -> None:
        with storage_errors(self.root):
            os.rename(self.root, other.path)

    def probe(self) -> None:
        pass  # judged by the preflight without writing anything

    def in_use(self) -> bool:
        try:
            with (self.root / ".lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock, or no folder that could be locked
            return False
        return False

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the folder, which is made, for one launch, and clears what a killed one left half written.

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
                file.write(f"{_me()}\n")
                file.flush()
                for leftover in self.root.glob("**/.*.tmp"):
                    leftover.unlink()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(0)  # says who holds it, and nobody does


def sync(folder: Path) -> None:
    """Makes the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _me() -> str:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return f"pid {os.getpid()} on host {socket.gethostname()} since {now}"
