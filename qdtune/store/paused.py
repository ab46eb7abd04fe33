"""The checkpoints of paused trainings in a folder, at most one of each trial.

They save time and nothing else: a trial whose checkpoint is missing is trained from the beginning, with the same
numbers. So nothing here raises because of the storage, and the oldest ones go first if they need too much of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from qdtune.store.folder import StorageError
from qdtune.store.open_folder import open_folder

MAX_PAUSED_BYTES = 2**30  # of all checkpoints of a run folder


class PausedFolder:
    """The checkpoints of one run folder.

    Args:
        folder: the path or URL of the files, `TRIAL_ID.safetensors` each; the first checkpoint creates it.
        max_bytes: of all files. The oldest ones are removed to make room.
    """

    def __init__(self, folder: str, max_bytes: int = MAX_PAUSED_BYTES) -> None:
        self.folder, self.max_bytes = open_folder(folder), max_bytes
        self.forgotten: set[str] = set()  # trials that have ended since they started last
        self.sizes: dict[str, int] = {}  # file -> bytes, the oldest first
        with contextlib.suppress(StorageError):
            files = self.folder.list_sizes("")
            self.sizes = {file: size for file, size in files.items() if file.endswith(".safetensors")}

    def find(self, trial_id: str) -> bytes | None:
        """The checkpoint of a trial that starts now; None if there is none, or if it cannot be read."""
        self.forgotten.discard(trial_id)
        file = _paused_file(trial_id)
        if file in self.sizes:  # without a request to an object store for each trial
            with contextlib.suppress(StorageError):
                return self.folder.read_file(file)
        return None

    def keep(self, trial_id: str, blob: bytes) -> None:
        """Keeps a checkpoint in place of the trial's earlier one; ignored if the trial is forgotten.

        If it cannot be written the disk may be full, so half of all checkpoints make room for results.
        """
        file = _paused_file(trial_id)
        if trial_id in self.forgotten or len(blob) > self.max_bytes:
            return
        before = self.sizes.pop(file, 0)
        self._make_room(self.max_bytes - len(blob) - before)  # the earlier one stays until the new one is whole
        try:
            self.folder.write_file(file, blob)
        except StorageError:
            self._make_room(sum(self.sizes.values()) // 2)
            if before:
                self.sizes[file] = before
        else:
            self.sizes[file] = len(blob)

    def refuse(self, trial_id: str) -> None:
        """Renames a damaged checkpoint to `FILE.damaged`."""
        file = _paused_file(trial_id)
        if self.sizes.pop(file, None) is not None:
            with contextlib.suppress(StorageError):
                self.folder.rename_file(file, f"{file}.damaged")

    def forget(self, trial_ids: Iterable[str]) -> None:
        """Removes the checkpoints of trials that have ended. Later ones are ignored until the trial starts again."""
        for trial_id in trial_ids:
            self.forgotten.add(trial_id)
            self._remove(_paused_file(trial_id))

    def _make_room(self, max_bytes: int) -> None:
        """Removes the oldest checkpoints until the others need at most so many bytes."""
        total = sum(self.sizes.values())
        for file, size in list(self.sizes.items()):
            if total <= max_bytes:
                return
            self._remove(file)
            total -= size

    def _remove(self, file: str) -> None:
        if self.sizes.pop(file, None) is not None:
            with contextlib.suppress(StorageError):
                self.folder.remove_file(file)


def _paused_file(trial_id: str) -> str:
    if not trial_id.isalnum():
        raise ValueError(f"a trial_id must be letters and digits, got {trial_id!r}")
    return f"{trial_id}.safetensors"
