"""The layer kinds there are. What belongs to none of them stays as it is, and its bytes count as float32."""

from __future__ import annotations

from torch import nn

from qdtune.model.layers.activation import Activation
from qdtune.model.layers.batch_norm import BatchNorm
from qdtune.model.layers.kind import LayerKind
from qdtune.model.layers.linear import Linear

LAYERS: tuple[LayerKind, ...] = (
    Linear(),
    BatchNorm(),
    Activation(),
)


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a layer; None for what belongs to none, such as a chain of factors."""
    return next((kind for kind in LAYERS if kind.owns(module)), None)


def splitter_of(module: nn.Module) -> LayerKind | None:
    """The kind that splits a layer, or a chain again; None for what is not split."""
    return next((kind for kind in LAYERS if kind.can_split(module)), None)


def kind_of_op(name: str) -> LayerKind:
    """The kind whose operation of a packed program has this name; LookupError where there is none."""
    for kind in LAYERS:
        if name in kind.ops:
            return kind
    raise LookupError(f"no layer kind has the operation {name!r}")
