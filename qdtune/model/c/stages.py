"""The operations of a packed program as stages of a C program.

A stage takes codes or floats, multiplies or copies them, and ends in codes, where the next layer's inputs are
quantised, or in floats. What lies between is done to one number at a time: normalisations, activations, a pool. Layer
kinds add their operations through the methods of `StageList` (`LayerKind.add_stage`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qdtune.model.formats.format import averaging_of
from qdtune.reader import GRIDS, Model

Op = dict[str, Any]
BENDS = {"gelu": (-0.7517916,)}  # where an activation turns from falling to rising; no other one does


@dataclass(frozen=True)
class Quantiser:
    """How the inputs of a layer are rounded.

    Attributes:
        op: the operation of the layer.
        low, high: the lowest and the highest code.
        is_binary: whether these two are the only ones.
        step: the name of the tensor of its step size.
    """

    op: Op
    low: int
    high: int
    is_binary: bool
    step: str

    @staticmethod
    def of(op: Op) -> Quantiser | None:
        """That of an operation; None if its inputs are floats."""
        if op["act_bits"] is None:
            return None
        low, high, is_binary = GRIDS[op["act_bits"], op.get("input_levels")]
        return Quantiser(op, low, high, is_binary, op["input_step"])


@dataclass
class Stage:
    """One step of the program.

    Attributes:
        source: "input" (the rows of the caller), "product" (a layer with weights) or "values" (floats of the stage
            before).
        op: of a product.
        shape: (C, ...) of what the source computes.
        before, after: the operations on single numbers, before and after the pool.
        pool: the operation; None: there is none.
        pooled: (C, ...) behind the pool.
        quantiser: of the next layer; None: the stage ends in floats.
        taken: (C, ...) of what a product takes.
    """

    source: str
    op: Op | None
    shape: tuple[int, ...]
    before: list[Op] = field(default_factory=list)
    pool: Op | None = None
    pooled: tuple[int, ...] = ()
    after: list[Op] = field(default_factory=list)
    quantiser: Quantiser | None = None
    taken: tuple[int, ...] = ()

    @property
    def end_shape(self) -> tuple[int, ...]:
        """(C, ...) of what comes out."""
        return self.shape if self.pool is None else self.pooled

    @property
    def plane(self) -> int:
        """The numbers of one channel of what the source computes."""
        return math.prod(self.shape[1:])


class StageList:
    """Stages, as operations are added.

    Attributes:
        stages: the last one is still open.
        shape: (C, ...) of what comes out so far.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        averaging = averaging_of(model.program)
        width = model.program["inputs"]
        if averaging is not None:
            width = averaging["image"][0] * math.prod(averaging["size"])
        self.shape: tuple[int, ...] = (width,)
        self.stages = [Stage("input", None, self.shape)]

    def add_product(self, op: Op, shape: tuple[int, ...]) -> None:
        """Adds a layer with weights, whose output has this shape."""
        self.stages[-1].quantiser = Quantiser.of(op)
        self.stages.append(Stage("product", op, shape, taken=self.shape))
        self.shape = shape

    def add_pointwise(self, op: Op) -> None:
        """Adds an operation on single numbers: a normalisation or an activation."""
        if _is_by_channel(op, self.model) and self.stages[-1].end_shape != self.shape:
            self._cut()
        stage = self.stages[-1]
        (stage.before if stage.pool is None else stage.after).append(op)

    def add_pool(self, op: Op, shape: tuple[int, ...]) -> None:
        """Adds a pool, whose output has this shape."""
        if self.stages[-1].pool is not None or self.stages[-1].end_shape != self.shape:
            self._cut()
        self.stages[-1].pool, self.stages[-1].pooled = op, shape
        self.shape = shape

    def reshape(self, shape: tuple[int, ...]) -> None:
        """Says that the numbers, in their order, are of another shape from here on."""
        self.shape = shape

    def _cut(self) -> None:
        """Ends the stage in floats and begins one that takes them."""
        self.stages.append(Stage("values", None, self.shape))


def _is_by_channel(op: Op, model: Model) -> bool:
    """Whether an operation has a number for each channel."""
    return any(op.get(key) is not None and model.tensors[op[key]].size > 1 for key in ("scale", "shift"))


def window_sides(sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """The sides of what a sliding window leaves of an image or a signal of these sides, padding included."""
    return tuple((side - k) // s + 1 for side, k, s in zip(sides, kernel, stride, strict=True))
