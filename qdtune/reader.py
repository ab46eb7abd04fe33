"""Reads a packed model of qdtune. It needs NumPy and no other file: copy it to wherever the model goes.

    model = load("0a1b2c3d4e5f.safetensors")
    model.logits(x)  # uint8 pixels (B, I), or floats that are normalised already -> float32 (B, O)
    model.tensors    # name -> array, the weights as float32 (O, I)

The layout, version 1. 8 bytes: N, unsigned; N bytes: JSON in UTF-8; the rest: the data, which is as long as the
model's `size_bytes`. All numbers are little-endian. The JSON maps the name of each tensor to its `dtype`, `shape` and
`data_offsets` [begin, end) in the data, which the tensors fill without a gap (so far this is safetensors). Its entry
`__metadata__` maps text to text:

    qdtune.packed  1
    qdtune.model   JSON: {"model": "mlp", "inputs": I, "outputs": O, "ops": [...]}
    qdtune.sha256  in hexadecimal, of the JSON above without this entry (keys sorted, ASCII, ", " and ": " between),
                   followed by the data

`ops` are applied in turn, the first to pixels / 127.5 - 1, all in float32; NAME is that of a tensor, or null:

    {"op": "linear", "shape": [O, I], "bits": b, "weight": NAME, "step": NAME, "bias": NAME,
     "act_bits": a, "input_step": NAME}                x <- q(x) W^T + bias
    {"op": "affine", "scale": NAME, "shift": NAME}     x <- x * scale + shift for each feature: a batch normalisation
    {"op": one of ACTIVATIONS}                         x <- that of x

With b = 1..16, W is stored as O * I codes of b bits, row by row, in one stream of bits. Code k takes the bits from
k*b to k*b + b - 1, its lowest bit first; bit n of the stream is bit n mod 8 of byte n div 8, where bit 0 is worth 1.
What is left of the last byte is zero. Read as an unsigned number u, a code stands for step * (u - Q), where
Q = 2^(b-1) - 1, and with b = 1 for step * (2u - 1). With b = 32, W is float32. q(x) is x where a is null; else, with
s for input_step, s * min(max(round(x / s), -Q), Q) with the Q of a bits, halves rounded to the even neighbour, and
with a = 1 it is s where x >= 0 and -s elsewhere.

Where "model" is not "mlp", it names the function of a user's that builds the network: then `ops` only say how tensors
are stored.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

PACKED, MODEL, CHECKSUM, VERSION = "qdtune.packed", "qdtune.model", "qdtune.sha256", "1"
Array = np.ndarray[Any, Any]
DTYPES = {"U8": "u1", "I8": "i1", "BOOL": "?"} | {f"{k.upper()}{8 * n}": f"<{k}{n}" for k in "fiu" for n in (2, 4, 8)}
ERF = np.vectorize(math.erf, otypes=[np.float64])
ACTIVATIONS: dict[str, Any] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
    "gelu": lambda x: (0.5 * x * (1 + ERF(x / math.sqrt(2)))).astype(np.float32),
    "tanh": np.tanh,
    "hardtanh": lambda x: np.clip(x, -1, 1),
}


class ReaderError(ValueError):
    """The file is no packed model, or the model cannot do what it is asked."""


@dataclass(frozen=True)
class Model:
    """A packed model: `program` is qdtune.model, `stored` its tensors, `tensors` those with W in place of codes."""

    program: dict[str, Any]
    stored: dict[str, Array]
    tensors: dict[str, Array]

    def logits(self, x: Array) -> Array:
        """The logits, float32 (B, O), of x (B, I): uint8 pixels, or floats as the first layer wants them."""
        model, width = self.program["model"], self.program["inputs"]
        _must(model == "mlp", f"the forward pass of {model!r} is in its own code: here are its tensors alone")
        fits = x.ndim == 2 and x.shape[1] == width and (x.dtype == np.uint8 or x.dtype.kind == "f")
        _must(fits, f"x must be uint8 or floats of shape (B, {width}), got {x.dtype} of shape {x.shape}")
        x = x.astype(np.float32) / np.float32(127.5) - 1 if x.dtype == np.uint8 else x.astype(np.float32)
        for op in self.program["ops"]:
            if op["op"] == "linear":
                if op["act_bits"] is not None:
                    x = _quantised(x, self.tensors[op["input_step"]], op["act_bits"])
                x = x @ self.tensors[op["weight"]].T + (0 if op["bias"] is None else self.tensors[op["bias"]])
            elif op["op"] == "affine":
                x = x * self.tensors[op["scale"]] + self.tensors[op["shift"]]
            else:
                x = ACTIVATIONS[op["op"]](x)
        return x


def load(path: str | os.PathLike[str]) -> Model:
    """The packed model in a file; ReaderError where it is damaged or something else."""
    with open(path, "rb") as file:
        return parse(file.read())


def parse(blob: bytes) -> Model:
    """The packed model in the bytes of a file; ReaderError where they are damaged or something else."""
    start = 8 + int.from_bytes(blob[:8], "little")
    _must(8 < start <= len(blob), f"a packed model must be whole, got its first {len(blob)} bytes")
    try:
        header, data = json.loads(blob[8:start]), blob[start:]
        metadata = header["__metadata__"]
        version, promised = metadata.get(PACKED), metadata.pop(CHECKSUM, None)
        _must(version == VERSION, f"the file must be a packed model of version {VERSION}, got version {version!r}")
        found = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data).hexdigest()
        _must(found == promised, f"the file must fit its checksum {promised!r}, got {found}: it is damaged")
        del header["__metadata__"]
        program, stored = json.loads(metadata[MODEL]), _stored(header, data)
        return Model(program, stored, stored | _weights(program, stored))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ReaderError(f"{'' if isinstance(error, ReaderError) else 'no packed model: '}{error}"[:300]) from None


def codes(packed: Array, shape: tuple[int, int], bits: int) -> Array:
    """The codes (O, I), int32, in the bytes of a weight of 1..16 bits."""
    stream = np.unpackbits(packed, count=math.prod(shape) * bits, bitorder="little").reshape(-1, bits)
    wide = np.packbits(np.pad(stream, ((0, 0), (0, 16 - bits))), axis=1, bitorder="little")  # two bytes each
    unsigned = wide.view("<u2").astype(np.int32).reshape(shape)
    return 2 * unsigned - 1 if bits == 1 else unsigned - largest(bits)


def largest(bits: int) -> int:
    """Q, the largest code of so many bits."""
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def _quantised(x: Array, step: Array, bits: int) -> Array:
    q = largest(bits)
    return step * (np.where(x >= 0, np.float32(1), -1) if bits == 1 else np.clip(np.round(x / step), -q, q))


def _stored(header: dict[str, Any], data: bytes) -> dict[str, Array]:
    """The tensors of a header: they lie in the data one after the other, and fill it."""
    stored, place = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], np.dtype(DTYPES[entry["dtype"]])
        fits = all(type(n) is int and n >= 0 for n in (begin, end, *shape)) and begin == place and end <= len(data)
        fits = fits and end - begin == math.prod(shape) * dtype.itemsize
        _must(fits, f"{name[:60]!r} must fill its place in {len(data)} bytes of data, got {begin!r} to {end!r}")
        stored[name], place = np.frombuffer(data[begin:end], dtype).reshape(shape), end
    _must(place == len(data), f"the tensors must fill {len(data)} bytes of data, got {place}")
    return stored


def _weights(program: dict[str, Any], stored: dict[str, Array]) -> dict[str, Array]:
    """The weights by name, float32 (O, I); every operation was found to fit its tensors and what comes before it."""
    weights, width, runs = {}, program["inputs"], program["model"] == "mlp"

    def check(name: str, shape: tuple[int, ...], dtype: str = "<f4") -> None:
        fits = stored[name].shape == shape and stored[name].dtype == dtype
        fits = fits and (shape != () or 0 < float(stored[name]) < math.inf)  # a step
        _must(fits, f"{name[:60]!r} must hold {dtype} of shape {shape}")

    for op in program["ops"]:
        if op["op"] == "linear":
            (o, i), b, a = op["shape"], op["bits"], op["act_bits"]
            fits = type(o) is type(i) is int and o > 0 and (i == width if runs else i > 0)
            fits = fits and b in (*range(1, 17), 32) and a in (None, *range(1, 17))
            _must(fits, f"a layer of {o!r} x {i!r}, {b!r} and {a!r} bits cannot stand here")
            check(op["weight"], *(((o, i),) if b == 32 else ((-(-o * i * b // 8),), "|u1")))
            if b < 32:
                check(op["step"], ())
                code = codes(stored[op["weight"]], (o, i), b).astype(np.float32)
                weights[op["weight"]] = stored[op["step"]] * code
            if a is not None:
                check(op["input_step"], ())
            if op["bias"] is not None:
                check(op["bias"], (o,))
            width = o
        elif op["op"] == "affine":
            features = (width,) if runs else stored[op["scale"]].shape
            check(op["scale"], features)
            check(op["shift"], features)
        else:
            _must(op["op"] in ACTIVATIONS, f"an operation must be known, got {op['op']!r}")
    _must(not runs or width == program["outputs"], f"there must be {program['outputs']!r} outputs, got {width!r}")
    return weights


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise ReaderError(what)
