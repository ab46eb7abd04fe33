"""Linear layers: `nn.Linear`, the chain of factors it is split into, and the same with few bits.

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
    from qdtune.model.formats.onnx import Graph


class FactoredLinear(Chain):
    """A linear map written as D factors with an activation between them.

    The factors have no bias but the last one, which holds the bias of the layer they replace.

    Args:
        in_features: I, >= 1.
        out_features: O, >= 1.
        depth: D, the number of factors, >= 1; one factor is the layer itself.
        bias: whether the last factor has one.
        activation: a name of `chain.ACTIVATIONS`, applied after every factor but the last.
        norm: whether a batch normalisation stands before each of these activations (inputs are then (B, I)).

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
    """A linear layer whose weights, and where asked whose inputs, are fake-quantised in every forward pass.

    One step size for each output channel (`granularity`) is a scale vector between the factors of a chain, as in
    Double Binary Factorization (arXiv 2505.11076) and LittleBit (arXiv 2506.13771), which have it between their two
    sign matrices. They have one more for the inputs of the chain, and take all from a trained matrix; here a factor
    scales its outputs alone, at any depth and number of bits, and `lsq` trains the vector with the task's loss.

    Args:
        linear: the layer it replaces.
        weight_bits, act_bits, scale, levels, granularity: as of `Quantized.take_over`.

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
        return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


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

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        bias = [] if op["bias"] is None else [graph.tensor(op["bias"])]
        return graph.add("Gemm", [graph.quantized_input(op, x), graph.weight(op), *bias], transB=1)
