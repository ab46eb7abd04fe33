"""Safetensors files with a checksum in their header, written and judged without torch.

Equal contents give equal bytes: the keys of the header are sorted. Safetensors itself writes them in any order.
Files of older versions have such headers. They verify all the same, because the checksum sorts the keys first.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

CHECKSUM = "qdtune.sha256"
TRIAL = "qdtune.trial_id"  # of the trial that trained what a file of weights holds
PROGRESS = "qdtune.paused"  # of a checkpoint: what is no tensor, as JSON


def sign_file(header: dict[str, Any], data: bytes) -> bytes:
    """A safetensors file with a checksum in its metadata; the order of the header's keys makes no difference.

    Args:
        header: of safetensors: tensor name -> dtype, shape and place; `__metadata__` may have an old checksum.
        data: the numbers of the tensors.
    """
    metadata = {**header.get("__metadata__", {}), CHECKSUM: _digest(header, data)}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    return len(text).to_bytes(8, "little") + text + data


def checksum(blob: bytes) -> str:
    """The checksum of a safetensors file: of its numbers and its header, without the checksum in it."""
    return _digest(*split_file(blob))


def find_fault(blob: bytes, older: bool = True) -> str | None:
    """What is wrong with the bytes of a file that `sign_file` made; None if nothing is.

    Args:
        blob: the whole file.
        older: whether the file may lack a checksum, as warm-ups of older versions do.
    """
    try:
        promised = (split_file(blob)[0].get("__metadata__") or {}).get(CHECKSUM)
        found = checksum(blob)
    except (ValueError, AttributeError, TypeError, RecursionError):  # no JSON, or not of this shape
        return "it is no safetensors file"
    if promised == found or (promised is None and older):
        return None
    return f"the numbers do not fit their checksum {promised}"


def read_owner(blob: bytes) -> str | None:
    """The trial that trained what a file of weights holds; None if the file does not say it.

    Args:
        blob: a file without a fault.
    """
    owner = (split_file(blob)[0].get("__metadata__") or {}).get(TRIAL)
    return None if owner is None else str(owner)


def read_paused_epoch(blob: bytes) -> int | None:
    """The QAT epoch at which a training goes on from a checkpoint; None if the file does not say it.

    Args:
        blob: a file without a fault.
    """
    epoch = read_progress(blob).get("epoch")
    return epoch if isinstance(epoch, int) else None


def read_progress(blob: bytes) -> dict[str, Any]:
    """What a checkpoint says about its training; empty if that has another shape, such as in another version.

    Args:
        blob: a file without a fault.
    """
    try:
        found = json.loads((split_file(blob)[0].get("__metadata__") or {}).get(PROGRESS, "{}"))
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def split_file(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and its numbers.

    Raises:
        ValueError: the file is cut off, or its header is no JSON.
    """
    end = 8 + int.from_bytes(blob[:8], "little")  # the layout of safetensors: length, JSON header, data
    if len(blob) < 8 or end > len(blob):
        raise ValueError("cut off")
    return json.loads(blob[8:end]), blob[end:]


def _digest(header: dict[str, Any], data: bytes) -> str:
    said = {key: value for key, value in (header.get("__metadata__") or {}).items() if key != CHECKSUM}
    whole = {**header, "__metadata__": said}
    if not said:  # warm-ups have no other metadata, and their checksums must stay what they were
        del whole["__metadata__"]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode() + data).hexdigest()
