"""The packed format: of a trial's file one replica, as it is shipped; `model/packed.py` has its layout."""

from __future__ import annotations

from typing import Any

import safetensors

from qdtune.model.signed_file import sign_file, split_file
from qdtune.reader import ReaderError


def one_seed(blob: bytes, seed: int) -> bytes:
    """One replica of a packed file of several as a file of its own, the tensors under their plain names.

    Raises:
        ReaderError: the file is no safetensors.
    """
    try:
        safetensors.deserialize(blob)  # from here on every place is one in the file
    except safetensors.SafetensorError as error:
        raise ReaderError(str(error)) from None
    header, data = split_file(blob)
    alone: dict[str, Any] = {"__metadata__": header.pop("__metadata__")}
    pieces, place = [], 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if name.startswith(f"{seed}/"):
            begin, end = entry["data_offsets"]
            alone[name.partition("/")[2]] = entry | {"data_offsets": [place, place + end - begin]}
            pieces.append(data[begin:end])
            place += end - begin
    return sign_file(alone, b"".join(pieces))
