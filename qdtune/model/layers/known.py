"""All layer kinds. A module that belongs to none of them is not changed, and its parameters count as float32."""

from __future__ import annotations

from torch import nn

from qdtune.model.layers.activation import Activation
from qdtune.model.layers.batch_norm import BatchNorm
from qdtune.model.layers.conv import Conv1d, Conv2d
from qdtune.model.layers.flatten import Flatten, Unflatten
from qdtune.model.layers.kind import LayerKind
from qdtune.model.layers.linear import Linear
from qdtune.model.layers.pooling import AveragePool, GlobalAverage, MaxPool

LAYERS: tuple[LayerKind, ...] = (
    Linear(),
    Conv1d(),
    Conv2d(),
    BatchNorm(),
    Activation(),
    MaxPool(),
    AveragePool(),
    GlobalAverage(),
    Flatten(),
    Unflatten(),
)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer; None if the module belongs to no kind, such as a chain."""
    return next((kind for kind in LAYERS if kind.owns(module)), None)


def splitter_of(module: nn.Module) -> LayerKind | None:
    """The kind that splits a layer or a chain; None if no kind splits it."""
    return next((kind for kind in LAYERS if kind.can_split(module)), None)


def kind_of_op(name: str) -> LayerKind:
    """The kind with this operation of a packed program.

    Raises:
        LookupError: no kind has it.
    """
    for kind in LAYERS:
        if name in kind.ops:
            return kind
    raise LookupError(f"no layer kind has the operation {name!r}")
