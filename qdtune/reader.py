"""Reads a packed model of qdtune. It needs only NumPy: copy this file to the machine that runs the model.

load("0a1b2c3d4e5f.safetensors").logits(x)  # x (B, I): uint8 pixels or floats, see WANTED -> float32 (B, O)
load("0a1b2c3d4e5f.safetensors").tensors    # name -> array; weights are float32 (O, I); packed.py has the layout
                                            # NAME.codes: int32, the codes of the weight NAME
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKED, MODEL, CHECKSUM, VERSION = "qdtune.packed", "qdtune.model", "qdtune.sha256", "2"
INPUT, INPUT_VERSION = "input", "3"  # version 3 has the key "input": the type of rows that are not uint8
AVERAGE, LATEST_VERSION = "average", "4"  # version 4 has operations that older readers do not know, such as this one
OVERHEAD_VERSION = "5"  # version 5 has numbers that are not float32, see `read_number`, and scales without shifts
NUMBERS = ("step", "input_step", "bias", "scale", "shift")  # the keys of operations that name such tensors
EXPONENT_OFFSET = 128  # a byte n is 2^(n - 128)
EXACT_FLOAT32 = 2**24  # whole numbers up to here are float32 exactly
MAX_SIDE = 8192  # pixels; a lying header asks for no more memory than this
DTYPES = {"U8": "u1", "I8": "i1", "BOOL": "?"} | {f"{k.upper()}{8 * n}": f"<{k}{n}" for k in "fiu" for n in (2, 4, 8)}
WANTED = "uint8 pixels or floats -1 to 1, which is (pixel / 127.5) - 1 and not ToTensor's 0 to 1"
# (bits, levels) -> lowest code, highest code, whether these two are the only ones. Version 1 has no levels (None).
GRIDS: dict[Any, tuple[int, int, bool]] = {(b, "unsigned"): (0, 2**b - 1, False) for b in range(1, 17)}


for _levels in (None, "symmetric", "ternary", "full"):
    GRIDS |= {(b, _levels): (-(2 ** (b - 1)) + (_levels != "full"), 2 ** (b - 1) - 1, False) for b in range(2, 17)}
    GRIDS[1, _levels] = (-1, 1, True)


ACTIVATIONS: dict[str, Any] = {"identity": lambda x: x, "tanh": np.tanh, "hardtanh": lambda x: np.clip(x, -1, 1)}
ACTIVATIONS |= {"relu": lambda x: np.maximum(x, 0), "leaky_relu": lambda x: np.where(x > 0, x, np.float32(0.01) * x)}
ACTIVATIONS["gelu"] = lambda x: (0.5 * x * (1 + np.vectorize(math.erf, otypes="d")(x / 2**0.5))).astype(np.float32)
OPERATIONS: dict[str, Any] = {  # layers with tensors: functions of x, the operation `op`, and all tensors `t`
    "linear": lambda x, op, t: multiply(x, op, t) + (0 if op["bias"] is None else t[op["bias"]]),
    "affine": lambda x, op, t: (
        x * per_channel(t[op["scale"]], x) + (0 if op["shift"] is None else per_channel(t[op["shift"]], x))
    ),
    "conv1d": lambda x, op, t: convolve(x, op, t),
    "conv2d": lambda x, op, t: convolve(x, op, t),
    "max_pool": lambda x, op, t: reduce(np.maximum, windows(x, op["kernel"], op["stride"])),
    "average_pool": lambda x, op, t: mean(windows(x.astype("f8"), op["kernel"], op["stride"])),
    "global_average": lambda x, op, t: x.mean(tuple(range(2, x.ndim)), dtype="f8", keepdims=True).astype("f4"),
    "flatten": lambda x, op, t: x.reshape(len(x), math.prod(x.shape[1:])),
    "unflatten": lambda x, op, t: x.reshape(len(x), *op["shape"]),
}


class ReaderError(ValueError):
    """The file is not a packed model, or the model cannot take this input."""


class Model(NamedTuple):
    """A packed model: its program (`qdtune.model`), the stored tensors, and the same with codes made weights."""

    program: dict[str, Any]
    stored: dict[str, np.ndarray]
    tensors: dict[str, np.ndarray]

    def __repr__(self) -> str:
        layers = ", ".join(f"{op['op']} {list(op['shape'])}" for op in self.layers if "weight" in op)
        return f"Model({sum(one.nbytes for one in self.stored.values()):,} bytes of tensors: {layers})"

    def logits(self, x: Any) -> np.ndarray:
        """The outputs, float32 (B, O), of an array or lists (B, I), see `WANTED`. Integers 0 to 255 are pixels too.

        If the program has an `input`, x are numbers of that type as the training data had them.

        Raises:
            ReaderError: x does not fit, or the forward pass is in a user's own code.
        """
        model, t = self.program["model"], self.tensors
        _must(self.is_complete, f"the forward pass of {model!r} is in its own code: see qdtune.load_into")
        x = self.first_inputs(x)
        for op in self.layers:
            x = OPERATIONS[op["op"]](x, op, t) if op["op"] in OPERATIONS else ACTIVATIONS[op["op"]](x)
        _must(x.shape[1:] == (self.program["outputs"],), f"the logits do not fit the outputs, got shape {x.shape}")
        return x

    @property
    def is_complete(self) -> bool:
        """Whether the operations are the whole forward pass; otherwise that is in a user's own code."""
        return self.program["model"] == "mlp" or self.program.get("complete") is True

    @property
    def layers(self) -> list[dict[str, Any]]:
        """The operations without the averaging of images, which `first_inputs` does."""
        ops: list[dict[str, Any]] = self.program["ops"]
        return ops[1:] if ops and ops[0]["op"] == AVERAGE else ops

    def first_inputs(self, x: Any) -> np.ndarray:
        """The inputs of the first layer, float32 (B, I): averaged down and normalised; x as for `logits`.

        Raises:
            ReaderError: x does not fit.
        """
        width, x = self.program["inputs"], np.asarray(x)
        low, high, wanted = (0, 255, WANTED) if x.dtype.kind in "iu" else (-1.001, 1.001, WANTED)
        kinds = "iuf"
        if (dtype := self.program.get(INPUT)) is not None:
            limits = np.finfo(dtype) if dtype.startswith("f") else np.iinfo(dtype)
            low, high, wanted = limits.min, limits.max, f"finite {dtype} as the training data, not normalised"
            kinds = "iuf" if dtype.startswith("f") else "iu"
        fits = x.shape[1:] == (width,) and x.dtype.kind in kinds and bool(((low <= x) & (x <= high)).all())
        _must(fits, f"x must be {wanted}, of shape (B, {width}), got {x.dtype} of shape {x.shape}")
        if len(self.layers) < len(self.program["ops"]):
            pixels = x if high == 255 else np.rint((x.astype(np.float64) + 1) * 127.5)
            x, high = average(pixels, self.program["ops"][0]), 255
        return x.astype(np.float32) / np.float32(127.5) - 1 if high == 255 else x.astype(np.float32)


def load(file: str | Path | bytes) -> Model:
    """The packed model in a file or in its bytes.

    Raises:
        ReaderError: the file is damaged or is not a packed model.
    """
    blob, stored, place = file if isinstance(file, bytes) else Path(file).read_bytes(), dict[str, np.ndarray](), 0
    start = 8 + int.from_bytes(blob[:8], "little")
    _must(8 < start <= len(blob), f"a packed model must be whole, got its first {len(blob)} bytes")
    try:
        header, data = json.loads(blob[8:start]), blob[start:]
        version, promised = header["__metadata__"].get(PACKED), header["__metadata__"].pop(CHECKSUM, None)
        versions = ("1", VERSION, INPUT_VERSION, LATEST_VERSION, OVERHEAD_VERSION)
        _must(version in versions, f"a packed model must be of version 1 to 5, got {version!r}")
        found = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data).hexdigest()
        _must(found == promised, f"the file must fit its checksum {promised!r}, got {found}: it is damaged")
        program = json.loads(header.pop("__metadata__")[MODEL])
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], np.dtype(DTYPES[entry["dtype"]])
            fits = begin == place <= end <= len(data) and end - begin == math.prod(shape) * dtype.itemsize
            _must(fits, f"{name[:60]!r} must fill its place in {len(data)} bytes of data, got {begin} to {end}")
            stored[name], place = np.frombuffer(data[begin:end], dtype).reshape(shape), end
        _must(place == len(data), f"the tensors must fill {len(data)} bytes of data, got {place}")
        named = [op[key] for op in program["ops"] for key in NUMBERS if op.get(key) is not None]
        tensors = stored | {name: read_number(stored[name]) for name in named}
        few_bits = [op for op in program["ops"] if op.get("bits", 32) != 32]
        found_codes = {op["weight"]: codes(stored, op) for op in few_bits}
        for op in few_bits:
            tensors[op["weight"]] = tensors[op["step"]] * found_codes[op["weight"]].astype(np.float32)
        model = Model(program, stored, tensors | {f"{name}.codes": array for name, array in found_codes.items()})
        if model.is_complete:  # a forward pass of zero rows checks all shapes
            model.logits(np.zeros((0, program["inputs"]), np.uint8))
        return model
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ReaderError(f"{'' if isinstance(error, ReaderError) else 'no packed model: '}{error}"[:300]) from None


def read_number(stored: np.ndarray) -> np.ndarray:
    """Step sizes, biases, scales or shifts as float32, by the type that they are stored in.

    uint8 are the exponents of powers of two, plus 128. int8 (1 + O,) are O whole numbers times a unit, and the first
    one is the exponent of this unit. float16 and float32 are themselves.
    """
    if stored.dtype == np.uint8:
        return np.asarray(np.ldexp(np.float32(1), stored.astype(np.int32) - EXPONENT_OFFSET))
    if stored.dtype == np.int8:
        return np.ldexp(stored[1:].astype(np.float32), stored[:1].astype(np.int32))
    return stored.astype(np.float32) if stored.dtype == np.float16 else stored


def average(x: np.ndarray, op: dict[str, Any]) -> np.ndarray:
    """Images with fewer pixels, uint8 (B, C h w): each is the mean of those under it, weighted by area, halves up.

    Args:
        x: rows (B, C H W) of pixels 0 to 255, channel by channel.
        op: "image": [C, H, W], "size": [h, w], at most H and W.
    """
    (channels, *sides), size = op["image"], op["size"]
    for n, m in zip(sides, size, strict=True):
        _must(1 <= m <= n <= MAX_SIDE, f"an image of {n} pixels cannot be averaged down to {m}")
    down, right = (area_weights(n, m).astype("f8") for n, m in zip(sides, size, strict=True))
    total = int(down[0].sum() * right[0].sum())
    sums = down @ (x.astype("f8").reshape(len(x), channels, *sides) @ right.T)  # whole numbers, exact in float64
    return ((2 * sums.astype("i8") + total) // (2 * total)).astype("u1").reshape(len(x), channels * math.prod(size))


def area_weights(side: int, fewer: int) -> np.ndarray:
    """How much of each of `side` pixels lies under each of `fewer`: (fewer, side), whole numbers, equal row sums."""
    new, old = np.arange(fewer)[:, None], np.arange(side)
    shared = np.minimum((new + 1) * side, (old + 1) * fewer) - np.maximum(new * side, old * fewer)
    return np.maximum(shared, 0) // math.gcd(side, fewer)


def codes(stored: dict[str, np.ndarray], op: dict[str, Any]) -> np.ndarray:
    """The codes (O, ...), int32, of the weight of an operation with 1..16 bits."""
    packed, shape, bits = stored[op["weight"]], op["shape"], op["bits"]
    low, _, binary = GRIDS[bits, op.get("levels")]
    stream = np.unpackbits(packed, bitorder="little")[: math.prod(shape) * bits].reshape(-1, bits)
    found = (stream.astype(np.int32) << np.arange(bits)).sum(-1)
    if op.get("levels") == "ternary" and bits == 2:  # five codes to a byte
        found = (packed[:, None] // 3 ** np.arange(5) % 3).ravel()[: math.prod(shape)]
    return (found.reshape(shape) * (1 + binary) + low).astype(np.int32)


def multiply(x: np.ndarray, op: dict[str, Any], t: dict[str, np.ndarray]) -> np.ndarray:
    """q(x) W^T of a linear operation. Codes are summed as whole numbers, which is exact in any order."""
    if op["act_bits"] is None or op.get("bits", 32) == 32:
        return round_input(x, op, t) @ t[op["weight"]].T
    sums = input_codes(x, op, t).astype("f8") @ t[f"{op['weight']}.codes"].T.astype("f8")
    return sums.astype(np.float32) * (t[op["input_step"]] * t[op["step"]]).ravel()


def convolve(x: np.ndarray, op: dict[str, Any], t: dict[str, np.ndarray]) -> np.ndarray:
    """A convolution of q(x) (B, C, ...), padded with zeros after it is rounded; codes are summed exactly."""
    is_exact = op["act_bits"] is not None and op.get("bits", 32) != 32
    weight, axes, groups = t[f"{op['weight']}.codes" if is_exact else op["weight"]], len(op["stride"]), op["groups"]
    x, kind, padding = (input_codes if is_exact else round_input)(x, op, t), np.dtype("f4"), op["padding"]
    if is_exact:
        largest = int(np.abs(weight).reshape(len(weight), -1).sum(1).max()) * 2 ** op["act_bits"]
        kind = np.dtype("f4" if largest <= EXACT_FLOAT32 else "f8")
    _must(0 <= min(padding) <= max(padding) <= MAX_SIDE, f"a padding must be 0 to {MAX_SIDE}, got {padding}")
    x = np.pad(x.astype(kind), [(0, 0), (0, 0), *zip(padding[:axes], padding[axes:], strict=True)])
    inner, kernel = weight.shape[1], weight.shape[2:]  # C/G, the sides of the kernel
    _must(x.shape[1] == groups * inner, f"{op['weight']} does not fit {x.shape[1]} channels")
    matrices = weight.astype(kind).reshape(groups, len(weight) // groups, inner, math.prod(kernel))
    sums, shape = np.zeros((), kind), x.shape
    for k, part in enumerate(windows(x, kernel, op["stride"], op["dilation"])):
        shape, rows = part.shape, part.reshape(len(x), groups, inner, math.prod(part.shape[2:]))
        sums = sums + (np.multiply if inner == 1 else np.matmul)(matrices[..., k], rows)
    sums = sums.reshape(len(x), len(weight), *shape[2:]).astype("f4")
    if is_exact:
        sums = sums * per_channel((t[op["input_step"]] * t[op["step"]]).ravel(), sums)
    return sums if op["bias"] is None else sums + per_channel(t[op["bias"]], sums)


def windows(x: np.ndarray, kernel: Any, stride: Any, dilation: Any = (1, 1)) -> Iterator[np.ndarray]:
    """The part of x (B, C, ...) that lies under each place of a sliding kernel, all of one shape, place by place."""
    ends = [side - d * (k - 1) for side, k, d in zip(x.shape[2:], kernel, dilation, strict=False)]
    _must(len(kernel) == len(stride) == x.ndim - 2 and min(kernel) > 0, f"a kernel {kernel} does not fit {x.shape}")
    _must(min(ends) > 0 < min(stride), f"a kernel {kernel} must fit into {x.shape}, and a stride be above 0")
    for place in product(*map(range, kernel)):
        starts = [p * d for p, d in zip(place, dilation, strict=False)]
        cuts: list[Any] = [slice(a, a + end, s) for a, end, s in zip(starts, ends, stride, strict=True)]
        yield x[(..., *cuts)]


def mean(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The mean, float32, of arrays of one shape, float64, which are added in turn."""
    every = [*parts]
    return (reduce(np.add, every) / len(every)).astype("f4")


def per_channel(numbers: np.ndarray, x: np.ndarray) -> np.ndarray:
    """One number for each channel of x (B, C, ...), in a shape that broadcasts."""
    return numbers.reshape(-1, *[1] * (x.ndim - 2))


def round_input(x: np.ndarray, op: dict[str, Any], t: dict[str, np.ndarray]) -> np.ndarray:
    """The input of an operation, rounded to its levels; unchanged if `act_bits` is None."""
    return x if op["act_bits"] is None else t[op["input_step"]] * input_codes(x, op, t)


def input_codes(x: np.ndarray, op: dict[str, Any], t: dict[str, np.ndarray]) -> np.ndarray:
    """The codes of the input of an operation with `act_bits`: whole numbers, as float32."""
    low, high, binary = GRIDS[op["act_bits"], op.get("input_levels")]
    found = np.where(x >= 0, 1, -1) if binary else np.clip(np.round(x / t[op["input_step"]]), low, high)
    return found.astype(np.float32)


def _must(holds: bool, what: str) -> None:
    """Raises a ReaderError with the text `what` unless it holds."""
    if not holds:
        raise ReaderError(what[:300])
