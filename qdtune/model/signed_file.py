"""Safetensors files with a checksum in their header, written and judged without torch."""

from __future__ import annotations

import hashlib
import json
from typing import Any

CHECKSUM = "qdtune.sha256"


def sign_file(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file of this header and these numbers, with its checksum in the metadata."""
    metadata = {**header.get("__metadata__", {}), CHECKSUM: _digest(header, data)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text + data


def checksum(blob: bytes) -> str:
    """A checksum of the numbers in a safetensors file, and of what its header says of them."""
    return _digest(*split_file(blob))


def find_fault(blob: bytes, older: bool = True) -> str | None:
    """What is wrong with the bytes of a file that was `signed`, if anything.

    Args:
        blob: the whole file.
        older: whether it may have no checksum: warm-ups of older versions have none.
    """
    try:
        promised = (split_file(blob)[0].get("__metadata__") or {}).get(CHECKSUM)
        found = checksum(blob)
    except (ValueError, AttributeError, TypeError, RecursionError):  # no JSON, or not of this shape
        return "it is no safetensors file"
    if promised == found or (promised is None and older):
        return None
    return f"the numbers do not fit their checksum {promised}"


def split_file(blob: bytes) -> tuple[dict[str, Any], bytes]:
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
