"""Changes of shape: rows into images or signals, and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from qdtune.model.layers.kind import LayerKind, Op
from qdtune.reader import LATEST_VERSION

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph


class Flatten(LayerKind):
    """`nn.Flatten()`: all axes but that of the batch become one."""

    ops = ("flatten",)
    has_tensors = False
    version = LATEST_VERSION

    def owns(self, module: Any) -> bool:
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)

    def axes_after(self, layer: nn.Module, axes: int) -> int | None:
        return 0

    def pack(self, layer: nn.Module, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        return {"op": self.ops[0]}, {}

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        graph.axes_after = 0
        return graph.add("Flatten", [x])

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.reshape((math.prod(stages.shape),))


class Unflatten(LayerKind):
    """`nn.Unflatten(1, (C, H, W))`: rows become images, or with `(C, L)` signals."""

    ops = ("unflatten",)
    has_tensors = False
    version = LATEST_VERSION

    def owns(self, module: Any) -> bool:
        if type(module) is not nn.Unflatten or module.dim != 1:
            return False
        return all(isinstance(size, int) and size > 0 for size in module.unflattened_size)

    def axes_after(self, layer: Any, axes: int) -> int | None:
        return None if axes else len(layer.unflattened_size) - 1

    def pack(self, layer: Any, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        return {"op": self.ops[0], "shape": list(layer.unflattened_size)}, {}

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        graph.axes_after = len(op["shape"]) - 1
        return graph.add("Reshape", [x, graph.constant(np.array([-1, *op["shape"]]), "INT64")])

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.reshape(tuple(op["shape"]))
