"""The journal of the Optuna studies, a file that optuna-dashboard shows live."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend


def make_journal(path: Path) -> BaseStorage:
    """A storage with a new journal at `path`; an older journal is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in (path, path.with_name(f"{path.name}.lock")):
        old.unlink(missing_ok=True)
    return JournalStorage(_JournalCopy(path))


class _JournalCopy(BaseJournalBackend):
    """The journal in memory, copied to a file for other processes to read.

    Each launch starts a new journal, so the file is only a copy. A full disk does not stop a sweep here, and
    text that another process writes into the file is ignored. The storage is the only reader and reads each entry
    once, so an entry is forgotten when a later one is asked for: those of ten thousand trials took half a gigabyte.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.pending = path, b""
        self.unread: list[dict[str, Any]] = []
        self.read = 0  # number of entries that were forgotten

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        del self.unread[: max(0, log_number_from - self.read)]
        self.read = max(self.read, log_number_from)
        return iter(self.unread[:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")) for log in logs]
        self.unread += [json.loads(line) for line in lines]
        self.pending += "".join(f"{line}\n" for line in lines).encode()
        with contextlib.suppress(OSError), open(self.path, "ab", buffering=0) as file:
            self.pending = self.pending[file.write(self.pending) :]
