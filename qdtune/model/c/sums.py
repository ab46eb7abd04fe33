"""The sums of products of a stage: how large they are, what they are worth, and how they become codes."""

from __future__ import annotations

import math
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.messages import user_error
from qdtune.model.c.products import Scheme
from qdtune.model.c.requantise import Requantiser, fit
from qdtune.model.c.stages import BENDS, Op, Quantiser, Stage
from qdtune.model.c.steps import INT32, SumRange, find_steps, find_thresholds, range_of_sums
from qdtune.model.formats.format import is_pixels
from qdtune.reader import ACTIVATIONS, GRIDS, OPERATIONS, Model, codes, input_codes
from qdtune.spec.choices import FLOAT_BITS

Array = NDArray[Any]


def scheme_of(op: Op) -> Scheme:
    """How the weights of an operation are stored."""
    if op["bits"] == FLOAT_BITS:
        return Scheme(FLOAT_BITS, False, 0, False)
    low, _, is_binary = GRIDS[op["bits"], op.get("levels")]
    return Scheme(op["bits"], op.get("levels") == "ternary" and op["bits"] == 2, low, is_binary)


def code_type(quantiser: Quantiser | None) -> str:
    """The type that holds the codes of a quantiser; that of floats if there is none."""
    if quantiser is None:
        return "float"
    if quantiser.low < 0:
        return "int8_t" if quantiser.high < 2**7 else "int16_t"
    return "uint8_t" if quantiser.high < 2**8 else "uint16_t"


def is_code_sum(op: Op) -> bool:
    """Whether an operation sums products of codes, which are whole numbers."""
    return op["act_bits"] is not None and bool(op["bits"] != FLOAT_BITS)


def range_of(model: Model, op: Op) -> SumRange:
    """The range of the sums of codes of each channel."""
    low, high, _ = GRIDS[op["act_bits"], op.get("input_levels")]
    weights = codes(model.stored, op).reshape(op["shape"][0], -1).astype(np.int64)
    return range_of_sums(weights, low, high, has_zeros=len(op["shape"]) > 2)


def sum_type(model: Model, op: Op) -> str:
    """The type of the sums of products.

    Raises:
        SpecError: they do not fit.
    """
    if not is_code_sum(op):
        return "float"
    if len(op["shape"]) > 2:
        if range_of(model, op).largest > INT32:
            raise user_error("the sums of a convolution must fit 32 bits in C, got larger ones: use fewer bits")
        return "int32_t"
    low, high, _ = GRIDS[op["act_bits"], op.get("input_levels")]
    largest: int = math.prod(op["shape"][1:]) * 2 ** op["bits"] * max(abs(low), high)  # codes are read unsigned
    return "int32_t" if largest <= INT32 else "int64_t"


def worth_of(model: Model, op: Op) -> Array:
    """What a sum of products of codes, or of one code and a float, is multiplied by: (1,) or (O,)."""
    t, worth = model.tensors, np.ones(1, np.float32)
    if op["act_bits"] is not None:
        worth = worth * t[op["input_step"]].ravel()
    return worth * t[op["step"]].ravel() if op["bits"] != FLOAT_BITS else worth


def find_requantiser(model: Model, stage: Stage) -> Requantiser | None:
    """How a stage that ends in codes makes them in whole numbers; None if it has to do so in floats."""
    quantiser, t = stage.quantiser, model.tensors
    parts = _split_chain(stage)
    if quantiser is None or parts is None:
        return None
    affine, activations = parts

    def code_of(numbers: Array) -> Array:
        return input_codes(_activate(numbers, activations), quantiser.op, t).astype(np.int64)

    steps = find_steps(code_of, _find_bends(activations))
    op = stage.op
    if op is None:
        if stage.source != "input" or not is_pixels(model.program) or affine:
            return None
        pixels = SumRange(np.zeros(1, np.int64), np.full(1, 255, np.int64))
        return fit(find_thresholds(_normalise, pixels, steps), np.full(1, 1 / 127.5))
    if not is_code_sum(op) or (sums_of := range_of(model, op)).largest > INT32:
        return None

    def value_of(sums: Array) -> Array:
        x = sums.astype(np.float32) * worth_of(model, op)
        x = x if op["bias"] is None else x + t[op["bias"]]
        return reduce(lambda x, one: OPERATIONS[one["op"]](x, one, t), affine, x)

    slope = worth_of(model, op).astype(np.float64) * np.ones(stage.shape[0])
    for one in affine:
        slope = slope * abs(t[one["scale"]].astype(np.float64).ravel())
    return fit(find_thresholds(value_of, sums_of, steps), slope)


def _activate(numbers: Array, activations: list[Op]) -> Array:
    """What activations make of numbers, one after the other."""
    return reduce(lambda x, op: ACTIVATIONS[op["op"]](x), activations, numbers)


def _find_bends(activations: list[Op]) -> list[float]:
    """The numbers at which a chain of activations turns: those that its first ones map to the bend of a later one."""
    places: list[float] = []
    for i, op in enumerate(activations):
        for bend in BENDS.get(op["op"], ()):
            places += find_steps(partial(_reaches, bend, activations[:i])).at.tolist()
    return sorted(places)


def _reaches(least: float, activations: list[Op], numbers: Array) -> Array:
    """1 for each number of which activations make at least this one, else 0."""
    return (_activate(numbers, activations) >= np.float32(least)).astype(np.int64)


def _normalise(pixels: Array) -> Array:
    return pixels.astype(np.float32) / np.float32(127.5) - 1


def _split_chain(stage: Stage) -> tuple[list[Op], list[Op]] | None:
    """The normalisations of a stage and then its activations; None if they stand in another order.

    A pool of largest numbers is left out: it may as well be done with codes, if what follows it only rises.
    """
    ops = [*stage.before, *stage.after]
    count = next((i for i, op in enumerate(ops) if op["op"] in ACTIVATIONS), len(ops))
    if any(op["op"] not in ACTIVATIONS for op in ops[count:]):
        return None
    if stage.pool is not None:
        rises = count <= len(stage.before) and not any(op["op"] in BENDS for op in stage.after)
        if stage.pool["op"] != "max_pool" or not rises:
            return None
    return ops[:count], ops[count:]
