"""Float warm-ups kept in a folder, each trained by one trial at a time.

Configurations that differ only in bits or step sizes start from the same warm-up. The first that needs it trains
it, others that ask meanwhile are told to wait. The sweep runs one of these as a Ray actor beside its driver, so that
workers on other machines need no file system in common with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any, Literal

from qdtune.storage import StorageError, open_folder

Answer = Literal["kept", "train", "wait"]
CHECKSUM = "qdtune.sha256"


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
                blob = self.folder.read(_file(key))
        if blob is not None:
            return "kept", blob
        if self.training.setdefault(key, holder) == holder:
            return "train", None
        return "wait", None

    def keep(self, key: str, blob: bytes) -> None:
        """Keeps a trained warm-up: the file appears whole or not at all. One there before was damaged: set aside."""
        file = _file(key)
        try:
            if self.folder.read(file) is not None:
                self.folder.rename(file, f"{file}.damaged")
            self.folder.write(file, blob)
        except StorageError:
            self.unwritten[key] = blob
        self.training.pop(key, None)

    def release(self, holder: str) -> None:
        """Lets others train what `holder` was training, because it has ended or starts anew."""
        self.training = {key: who for key, who in self.training.items() if who != holder}


def signed(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file of this header and these numbers, with its checksum in the metadata."""
    metadata = {**header.get("__metadata__", {}), CHECKSUM: _digest(header, data)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text + data


def checksum(blob: bytes) -> str:
    """A checksum of the numbers in a safetensors file, and of what its header says of them."""
    return _digest(*parts(blob))


def fault(blob: bytes, older: bool = True) -> str | None:
    """What is wrong with the bytes of a file that was `signed`, if anything.

    Args:
        blob: the whole file.
        older: whether it may have no checksum: warm-ups of older versions have none.
    """
    try:
        promised = (parts(blob)[0].get("__metadata__") or {}).get(CHECKSUM)
        found = checksum(blob)
    except (ValueError, AttributeError, TypeError, RecursionError):  # no JSON, or not of this shape
        return "it is no safetensors file"
    if promised == found or (promised is None and older):
        return None
    return f"the numbers do not fit their checksum {promised}"


def parts(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and its numbers; ValueError where it is cut off or no JSON."""
    end = 8 + int.from_bytes(blob[:8], "little")  # the layout of safetensors: length, JSON header, data
    if len(blob) < 8 or end > len(blob):
        raise ValueError("cut off")
    return json.loads(blob[8:end]), blob[end:]


def _digest(header: dict[str, Any], data: bytes) -> str:
    said = {key: value for key, value in (header.get("__metadata__") or {}).items() if key != CHECKSUM}
    whole = {**header, "__metadata__": said}
    if not said:  # as it always was for warm-ups, of which nothing else is said
        del whole["__metadata__"]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode() + data).hexdigest()


def _file(key: str) -> str:
    if not key.isalnum():
        raise ValueError(f"a warm-up's key must be letters and digits, got {key!r}")
    return f"{key}.safetensors"
