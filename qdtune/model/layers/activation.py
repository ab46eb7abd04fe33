"""Activations. They have no parameters, so they are only packed and exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from qdtune.model.chain import ACTIVATIONS
from qdtune.model.layers.kind import LayerKind, Op

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph

NAMES = {module: name for name, module in ACTIVATIONS.items()}
NODES = {"relu": "Relu", "leaky_relu": "LeakyRelu", "gelu": "Gelu", "tanh": "Tanh", "identity": "Identity"}


class Activation(LayerKind):
    """The modules of `chain.ACTIVATIONS`; the name of each is its operation."""

    ops = tuple(ACTIVATIONS)
    has_tensors = False

    def owns(self, module: nn.Module) -> bool:
        return type(module) in NAMES

    def pack(self, layer: nn.Module, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        return {"op": NAMES[type(layer)]}, {}

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        if op["op"] == "hardtanh":
            return graph.add("Clip", [x, graph.number(-1.0), graph.number(1.0)])
        return graph.add(NODES[op["op"]], [x], **({"alpha": 0.01} if op["op"] == "leaky_relu" else {}))

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.add_pointwise(op)
