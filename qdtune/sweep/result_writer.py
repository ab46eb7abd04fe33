"""Writes the results of a sweep to its store, and tries again while the storage fails.

Ray Tune waits in its searcher, for up to ten minutes, while no trial runs and none is suggested, and calls no
callback meanwhile. So the retries run in a thread of their own.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from qdtune.spec.configuration import Configuration
from qdtune.store.folder import StorageError
from qdtune.store.store import Store

RETRY_S, PATIENCE_S = 5.0, 120.0  # between two attempts to write; how long a storage may fail before the sweep ends
Ended = tuple[Configuration, list[dict[str, Any]], list[dict[str, Any]], bytes | None]  # rows, history, weights


class ResultWriter:
    """Writes ended trials to the store, in order. One thread, the recorder's, calls its methods.

    Args:
        store: where results go.
        metadata: what every file of a trial says about the launch.
        warn: prints a line; called in the recorder's thread only.

    Attributes:
        error: why the storage is given up; None if it is not.
    """

    def __init__(self, store: Store, metadata: dict[str, str], warn: Callable[[str], None]) -> None:
        self.store, self.metadata, self.warn = store, metadata, warn
        self.error: StorageError | None = None
        self._unwritten: deque[Ended] = deque()
        self._written: deque[Ended] = deque()  # stored, and not taken yet
        self._failing_since = math.inf
        self._mutex = threading.Lock()  # not held during a write, so that a storage that hangs holds up nobody
        self._retrying: threading.Thread | None = None
        self._closed = threading.Event()

    @property
    def is_behind(self) -> bool:
        """Whether there are results that are not stored; no trial may start meanwhile."""
        return bool(self._unwritten)

    def add(self, ended: Ended) -> None:
        """Stores an ended trial now, or as soon as the storage works again."""
        with self._mutex:
            self._unwritten.append(ended)
            is_first = self._retrying is None
        if is_first and (failure := self._write()):
            self.warn(f"{failure} (trying again for {PATIENCE_S:.0f} s)")
            self._retrying = threading.Thread(target=self._retry, name="retry-writes", daemon=True)
            self._retrying.start()

    def take_written(self) -> Iterator[Ended]:
        """The trials that were stored since the last call."""
        while self._written:
            yield self._written.popleft()

    def close(self) -> None:
        """Writes what is not written yet, without more patience, or sets `error`."""
        self._closed.set()
        if thread := self._retrying:
            thread.join()
        self._write()

    def _retry(self) -> None:
        while not self._closed.wait(RETRY_S) and self.error is None:
            self._write()
            with self._mutex:
                if not self._unwritten:
                    self._retrying = None
                    return

    def _write(self) -> StorageError | None:
        """Stores the ended trials in order; returns why that stopped if more attempts follow."""
        while self._unwritten and self.error is None:
            ours, rows, history, weights = self._unwritten[0]
            try:
                self.store.write(ours.trial_id, rows, history, self.metadata, weights)
            except StorageError as error:
                now = time.monotonic()
                self._failing_since = min(self._failing_since, now)
                if now - self._failing_since < PATIENCE_S and not self._closed.is_set():
                    return error
                self.error = error
            except ValueError as error:  # such as rows of another version of qdtune; the sweep must end in order
                self.error = StorageError(str(error))
            else:
                self._failing_since = math.inf
                with self._mutex:
                    self._written.append(self._unwritten.popleft())
        return None
