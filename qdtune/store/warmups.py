"""Float warm-ups in a folder, each trained by one trial at a time.

Configurations that differ only in bits or step sizes start from the same warm-up. The first trial that needs it
trains it, and the others wait. The sweep runs a `WarmupFolder` as a Ray actor next to its driver, so workers on other
machines need no shared file system.
"""

from __future__ import annotations

import contextlib
from typing import Literal

from qdtune.store.folder import StorageError
from qdtune.store.open_folder import open_folder

Answer = Literal["kept", "train", "wait"]


class WarmupFolder:
    """The warm-ups of one run folder.

    Args:
        folder: the path or URL of the files, `KEY.safetensors` each; the first warm-up creates it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = open_folder(folder)
        self.training: dict[str, str] = {}  # key -> the holder that trains it
        self.unwritten: dict[str, bytes] = {}  # kept in memory, so that a full disk fails no trial

    def claim(self, key: str, holder: str) -> tuple[Answer, bytes | None]:
        """The warm-up if it is kept; if not, whether `holder` trains it now or waits and asks again."""
        blob = self.unwritten.get(key)
        if blob is None:
            with contextlib.suppress(StorageError):  # a warm-up that cannot be read is trained again
                blob = self.folder.read_file(_warmup_file(key))
        if blob is not None:
            return "kept", blob
        if self.training.setdefault(key, holder) == holder:
            return "train", None
        return "wait", None

    def keep(self, key: str, blob: bytes) -> None:
        """Keeps a trained warm-up. An existing file must be damaged, so it is renamed to `FILE.damaged`."""
        file = _warmup_file(key)
        try:
            if self.folder.read_file(file) is not None:
                self.folder.rename_file(file, f"{file}.damaged")
            self.folder.write_file(file, blob)
        except StorageError:
            self.unwritten[key] = blob
        self.training.pop(key, None)

    def release(self, holder: str) -> None:
        """Lets others train the warm-ups of `holder`, because it has ended or restarts."""
        self.training = {key: who for key, who in self.training.items() if who != holder}


def _warmup_file(key: str) -> str:
    if not key.isalnum():
        raise ValueError(f"a warm-up's key must be letters and digits, got {key!r}")
    return f"{key}.safetensors"
