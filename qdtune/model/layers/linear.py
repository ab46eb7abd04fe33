"""Linear layers: `nn.Linear`, its chain of factors, and its quantised form.

Sources: the notebook's `DecomposedLinear` and `SymQuantLinear`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from qdtune.model.chain import Chain, last_factor
from qdtune.model.layers.kind import Op
from qdtune.model.layers.matrix import MatrixKind, Quantized
from qdtune.spec.sizes import factor_dims

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph


class FactoredLinear(Chain):
    """A linear layer split into D factors with an activation between them.

    Only the last factor has a bias, which is the bias of the layer that the chain replaces.

    Args:
        in_features: I, >= 1.
        out_features: O, >= 1.
        depth: D, the number of factors, >= 1; one factor is the layer itself.
        bias: whether the last factor has a bias.
        activation: a name of `chain.ACTIVATIONS`, applied after every factor but the last.
        norm: whether a batch normalisation precedes each of these activations (inputs are then (B, I)).

    Raises:
        ValueError: depth below 1 or an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int,
        bias: bool = True,
        activation: str = "identity",
        norm: bool = False,
    ) -> None:
        dims = factor_dims(in_features, out_features, depth)
        factors = (nn.Linear(dims[k], dims[k + 1], bias=bias and k == depth - 1) for k in range(depth))
        super().__init__(factors, (nn.BatchNorm1d(width) for width in dims[1:-1] if norm), activation)
        self.in_features, self.out_features = in_features, out_features


class QuantLinear(Quantized, nn.Linear):
    """A linear layer that fake-quantises its weights, and its inputs if it has `act_bits`, in every forward pass.

    With one step size per output channel (`granularity`), the step sizes are a scale vector between the factors of a
    chain. Double Binary Factorization (arXiv 2505.11076) and LittleBit (arXiv 2506.13771) have such a vector between
    their two sign matrices. They have another one for the inputs of the chain, and compute both from a trained
    matrix. Here a factor scales only its outputs, at any depth and bits, and `lsq` trains the vector with the task's
    loss.

    Args:
        linear: the layer that this one replaces.
        weight_bits, act_bits, scale, levels, granularity: see `Quantized.take_over`.

    Raises:
        ValueError: bits out of range or an unknown rule.
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_bits: int,
        act_bits: int | None,
        scale: str,
        levels: str = "symmetric",
        granularity: str = "tensor",
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.take_over(linear, weight_bits, act_bits, scale, levels, granularity)

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        return self.multiply(F.linear, x)


class Linear(MatrixKind):
    """`nn.Linear`: x W^T + bias."""

    name = "linear"
    plain = nn.Linear
    chain = FactoredLinear
    quantized = QuantLinear

    def split(self, layer: Any, depth: int, activation: str, norm: bool) -> FactoredLinear:
        has_bias = last_factor(layer).bias is not None
        return FactoredLinear(layer.in_features, layer.out_features, depth, has_bias, activation, norm)

    def plain_copy(self, layer: Any) -> nn.Linear:
        return nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")

    def axes_after(self, layer: nn.Module, axes: int) -> int | None:
        return None if axes else 0

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        product = graph.product(op, x, "Gemm", transB=1)
        return product if op["bias"] is None else graph.add("Add", [product, graph.tensor(op["bias"])])

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.add_product(op, (op["shape"][0],))
