"""The packed format: one replica of a trial's file, as it is shipped; `model/packed.py` specifies its layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors

from qdtune import reader
from qdtune.model.formats.format import Checked, Format, TrainedModel
from qdtune.model.signed_file import TRIAL, find_fault, sign_file, split_file
from qdtune.reader import Model, ReaderError


class PackedFormat(Format):
    """The packed file itself, with `reader.py` beside it."""

    def write(self, model: TrainedModel, options: Mapping[str, str]) -> bytes:
        return model.blob

    def check(self, path: Path, model: TrainedModel, options: Mapping[str, str]) -> Checked:
        must = "must read back as it was written, got"
        try:
            found, data = reader.load(path), split_file(path.read_bytes())[1]
        except ReaderError as error:
            return Checked(f"{must} a damaged file: {error}")
        if found.tensors.keys() == model.model.tensors.keys() and len(data) == model.entry["size_bytes"]:
            return Checked()
        return Checked(f"{must} something else: see the disk")

    def shared_files(self) -> dict[str, bytes]:
        return {"reader.py": Path(reader.__file__).read_bytes()}


PACKED = PackedFormat(
    name="packed",
    suffix=".safetensors",
    card_suffix=".json",
    usage="reader.py beside this file, with NumPy: load(file).logits(x), x {dtype} (batch, inputs)",
    closing="reader.py reads them",
    own_usage=(
        "qdtune.load_into(module, file)(x), module as your factory builds it at these hidden widths, x float32 "
        "(batch, inputs): {floats}; qdtune.to_onnx(module, file) makes ONNX of it; without torch: "
        "reader.py beside this file, load(file).tensors"
    ),
)


def read_seed(blob: bytes, row: Mapping[str, Any]) -> tuple[bytes, Model]:
    """One replica of a packed file of several: as a file of its own, and read.

    Args:
        blob: the file of a trial.
        row: of the replica, in the table `trials`.

    Raises:
        ReaderError: the file is damaged, belongs to another trial, or is not as long as the row says.
    """
    fault = find_fault(blob, older=False)
    if fault is not None:
        raise ReaderError(fault)
    alone = one_seed(blob, row["seed"])
    model, (header, data) = reader.load(alone), split_file(alone)
    if header["__metadata__"].get(TRIAL) != row["trial_id"] or len(data) != row["size_bytes"]:
        raise ReaderError(f"they must be of this trial and hold {row['size_bytes']} bytes, got {len(data)}")
    return alone, model


def one_seed(blob: bytes, seed: int) -> bytes:
    """One replica of a packed file of several as a file of its own, the tensors under their plain names.

    Raises:
        ReaderError: the file is no safetensors.
    """
    try:
        safetensors.deserialize(blob)  # after this, every place in the header lies within the file
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
