"""Float warm-ups kept in a folder, each trained by one trial at a time.

Configurations that differ only in bits or step sizes start from the same warm-up. The first that needs it trains
it, others that ask meanwhile are told to wait. The sweep runs one of these as a Ray actor beside its driver, so that
workers on other machines need no file system in common with it.
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
        folder: a path or a URL, where the files are, `KEY.safetensors` each; made when the first is kept.
    """

    def __init__(self, folder: str) -> None:
        self.folder = open_folder(folder)
        self.training: dict[str, str] = {}  # key -> who trains it
        self.unwritten: dict[str, bytes] = {}  # a full disk shall not fail the trials that share a warm-up

    def claim(self, key: str, holder: str) -> tuple[Answer, bytes | None]:
        """The warm-up if it is kept; else whether `holder` is the one to train it now or has to ask again."""
        blob = self.unwritten.get(key)
        if blob is None:
            with contextlib.suppress(StorageError):  # as good as not there
                blob = self.folder.read_file(_file(key))
        if blob is not None:
            return "kept", blob
        if self.training.setdefault(key, holder) == holder:
            return "train", None
        return "wait", None

    def keep(self, key: str, blob: bytes) -> None:
        """Keeps a trained warm-up: the file appears whole or not at all. One there before was damaged: set aside."""
        file = _file(key)
        try:
            if self.folder.read_file(file) is not None:
                self.folder.rename_file(file, f"{file}.damaged")
            self.folder.write_file(file, blob)
        except StorageError:
            self.unwritten[key] = blob
        self.training.pop(key, None)

    def release(self, holder: str) -> None:
        """Lets others train what `holder` was training, because it has ended or starts anew."""
        self.training = {key: who for key, who in self.training.items() if who != holder}


def _file(key: str) -> str:
    if not key.isalnum():
        raise ValueError(f"a warm-up's key must be letters and digits, got {key!r}")
    return f"{key}.safetensors"
