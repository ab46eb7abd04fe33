"""Batch normalisations. A packed file has a scale and a shift per feature, with the statistics folded in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qdtune.model.layers.kind import LayerKind, Op
from qdtune.spec.sizes import Sizes, norm_sizes

if TYPE_CHECKING:
    from qdtune.model.formats.onnx import Graph


FORWARDS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)


class BatchNorm(LayerKind):
    """`nn.BatchNorm1d` and its relatives: x * scale + shift. They are neither split nor quantised.

    A subclass with a forward pass of its own may compute something else, so it is none of them.
    """

    ops = ("affine",)

    def owns(self, module: nn.Module) -> bool:
        is_plain = isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).forward in FORWARDS
        return is_plain and not nn.utils.parametrize.is_parametrized(module)

    def count(self, layer: Any) -> Sizes:
        return norm_sizes(layer.num_features)

    def pack(self, layer: Any, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        """The operation x * scale + shift; both are computed in double precision and then rounded to float32.

        Raises:
            ValueError: it keeps no statistics, so it answers by its batch and is no such operation.
        """
        if layer.running_mean is None or layer.running_var is None:
            where = prefix.rstrip(".") or "this network"
            raise ValueError(f"a normalisation must keep statistics to be packed, got none in {where}")
        zeros = torch.zeros(layer.num_features, dtype=torch.float64)
        ones = torch.ones(layer.num_features, dtype=torch.float64)
        mean, spread = layer.running_mean.double(), (layer.running_var.double() + layer.eps).sqrt()
        scale = (ones if layer.weight is None else layer.weight.double()) / spread
        shift = (zeros if layer.bias is None else layer.bias.double()) - mean * scale
        names = {"scale": f"{prefix}scale", "shift": f"{prefix}shift"}
        return {"op": "affine", **names}, {names["scale"]: scale.float(), names["shift"]: shift.float()}

    def unpack(self, layer: Any, op: Op, tensors: dict[str, Tensor]) -> nn.Module:
        """The layer as x * scale + shift: with the mean 0 and the variance 1, exactly."""
        scale, shift = tensors[op["scale"]], tensors[op["shift"]]
        if scale.shape != layer.running_mean.shape:
            raise ValueError(
                f"{op['scale']} has {len(scale)} features in the file, {layer.num_features} in the module"
            )
        layer.weight, layer.bias, layer.eps = nn.Parameter(scale), nn.Parameter(shift), 0.0
        layer.running_mean.zero_()
        layer.running_var.fill_(1.0)
        return layer

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        scale, shift = (graph.channels(op[role]) for role in ("scale", "shift"))
        return graph.add("Add", [graph.add("Mul", [x, scale]), shift])
