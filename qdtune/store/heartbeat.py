"""A lock for storage that has none: a file that its holder renews as long as its process lives.

A killed launch still holds the folder for `STALE_S`. Two launches that both find it free at the same moment may both
continue until one sees the name of the other. That duplicates work, but loses no result, because both write the same
files.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Iterator
from datetime import datetime, timezone

from qdtune.store.folder import Folder, RunInUse, StorageError, describe_process

LOCK = ".lock"
# Seconds: how often the holder of a lock renews it, and how old an unrenewed lock must be to count as free.
RENEW_S, STALE_S = 20.0, 90.0
_NAME = re.compile(r" \([0-9a-f]{16}\)$")


def read_server_time(folder: Folder) -> datetime:
    """The clock of the storage, because the clocks of two machines may differ."""
    name = f".probe-{secrets.token_hex(8)}"
    folder.write_file(name, b"probe")
    try:
        now = folder.modified_at(name)
    finally:
        folder.remove_file(name)
    if now is None:
        raise StorageError(f"{folder.full_name(name)} was written and is not there")
    return now


def seems_held(folder: Folder) -> bool:
    """Whether a launch seems to hold the folder now; nothing is written."""
    beat = folder.modified_at(LOCK)
    return beat is not None and (datetime.now(timezone.utc) - beat).total_seconds() < STALE_S


def check_free(folder: Folder) -> None:
    """Raises RunInUse if a launch holds the folder by a heartbeat."""
    beat = folder.modified_at(LOCK)
    holder = (folder.read_file(LOCK) or b"").decode(errors="replace").strip()
    if beat is None or not _NAME.search(holder):  # held by a lock of the kernel, or not at all
        return
    silent = (read_server_time(folder) - beat).total_seconds()
    if silent < STALE_S:
        raise RunInUse(
            f"one launch may use {folder} at a time, but it is held by {holder}, last seen {silent:.0f} s "
            f"ago: wait for its end, or, if it was killed, until {STALE_S:.0f} s have passed"
        )


@contextlib.contextmanager
def hold_by_heartbeat(folder: Folder) -> Iterator[None]:
    """Holds the folder for one launch.

    Raises:
        RunInUse: another process holds it.
        StorageError: the folder cannot be written.
    """
    name = f"{describe_process()} ({secrets.token_hex(8)})"
    check_free(folder)
    folder.write_file(LOCK, name.encode())
    released = threading.Event()
    renewer = threading.Thread(target=_renew_lock, args=(folder, name, released), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        released.set()
        renewer.join()
        with contextlib.suppress(OSError):
            if folder.read_file(LOCK) == name.encode():
                folder.remove_file(LOCK)


def _renew_lock(folder: Folder, name: str, released: threading.Event) -> None:
    while not released.wait(RENEW_S):
        with contextlib.suppress(OSError):  # a storage that keeps failing shows up when results are written
            if folder.read_file(LOCK) not in (name.encode(), None):
                os.kill(os.getpid(), 15)  # another launch took over the lock: end in order
                return
            folder.write_file(LOCK, name.encode())
