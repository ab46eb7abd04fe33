"""Pooling over signals and images: the largest or the mean number of each window, or the mean of each channel.

Means are summed in double precision and rounded once, so that every program finds the same ones. Modules with padding
or other rare settings belong to no kind: they run, but only within a user's own forward pass.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from qdtune.model.c.stages import window_sides
from qdtune.model.layers.kind import LayerKind, Op
from qdtune.reader import LATEST_VERSION

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph


class Pooling(LayerKind):
    """A window that slides over the axes after the channels."""

    has_tensors = False
    version = LATEST_VERSION

    def axes_after(self, layer: nn.Module, axes: int) -> int | None:
        return axes if _count_axes(layer) == axes else None

    def pack(self, layer: Any, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        kernel, stride = (each_axis(size, _count_axes(layer)) for size in (layer.kernel_size, layer.stride))
        return {"op": self.ops[0], "kernel": kernel, "stride": stride}, {}

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.add_pool(op, (stages.shape[0], *window_sides(stages.shape[1:], op["kernel"], op["stride"])))


class MaxPool(Pooling):
    """`nn.MaxPool1d` and `nn.MaxPool2d`."""

    ops = ("max_pool",)

    def owns(self, module: Any) -> bool:
        return (
            type(module) in (nn.MaxPool1d, nn.MaxPool2d)
            and _is_all(module.padding, 0)
            and _is_all(module.dilation, 1)
            and not (module.ceil_mode or module.return_indices)
        )

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        return graph.add("MaxPool", [x], kernel_shape=op["kernel"], strides=op["stride"])


class AveragePool(Pooling):
    """`nn.AvgPool1d` and `nn.AvgPool2d`."""

    ops = ("average_pool",)

    def owns(self, module: Any) -> bool:
        is_plain = type(module) in (nn.AvgPool1d, nn.AvgPool2d) and _is_all(module.padding, 0)
        return is_plain and not module.ceil_mode and getattr(module, "divisor_override", None) is None

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        """Sums slices of doubles: AveragePool itself has no exact type in ONNX Runtime."""
        axes = len(op["kernel"])
        x = graph.cast(x, "DOUBLE")
        total = ""
        for place in product(*map(range, op["kernel"])):
            # The last slice ends at the last number, the one before it one number earlier, and so on.
            ends = [p - k + 1 or 2**31 for p, k in zip(place, op["kernel"], strict=True)]
            limits = (place, ends, range(2, 2 + axes), op["stride"])
            part = graph.add("Slice", [x, *(graph.constant(np.array(one), "INT64") for one in limits)])
            total = graph.add("Add", [total, part]) if total else part
        count = graph.constant(np.array(np.prod(op["kernel"])), "DOUBLE")
        return graph.cast(graph.add("Div", [total, count]), "FLOAT")


class GlobalAverage(LayerKind):
    """`nn.AdaptiveAvgPool1d(1)` and `nn.AdaptiveAvgPool2d(1)`: one mean for each channel; the axes stay."""

    ops = ("global_average",)
    has_tensors = False
    version = LATEST_VERSION

    def owns(self, module: Any) -> bool:
        return type(module) in (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d) and _is_all(module.output_size, 1)

    def axes_after(self, layer: nn.Module, axes: int) -> int | None:
        return axes if axes == (1 if isinstance(layer, nn.AdaptiveAvgPool1d) else 2) else None

    def pack(self, layer: nn.Module, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        return {"op": self.ops[0]}, {}

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        axes = graph.constant(np.arange(2, 2 + graph.axes_after), "INT64")
        return graph.cast(graph.add("ReduceMean", [graph.cast(x, "DOUBLE"), axes]), "FLOAT")

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.add_pool(op, (stages.shape[0], *[1] * (len(stages.shape) - 1)))


def _count_axes(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.MaxPool1d | nn.AvgPool1d) else 2


def each_axis(size: Any, axes: int) -> list[int]:
    """A setting for each axis that a window slides over; torch accepts one number for all of them."""
    return list(size) if isinstance(size, tuple | list) else [size] * axes


def _is_all(setting: Any, value: int) -> bool:
    return {*setting} == {value} if isinstance(setting, tuple | list) else bool(setting == value)
