"""Batch normalisations. A packed file has a scale and a shift per feature, with the statistics folded in.

If they are not stored as float32 (`axes.OVERHEAD`), training computes with the errors of the stored numbers. The
errors follow from the running statistics, which are folded in, and not from those of the batch. Otherwise a scale
near the middle of two powers of two would be one of them in some batches and the other in others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdtune.model.layers.kind import LayerKind, Op
from qdtune.model.overhead import FLOAT32, pack_factor, pack_terms, pass_gradient, round_factor, round_terms
from qdtune.spec.sizes import SHARED_SCALE, Sizes, norm_sizes

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph


FORWARDS = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)


class RoundedNorm(nn.modules.batchnorm._BatchNorm):
    """A batch normalisation with a scale and a shift as they are stored; listed before the class that it replaces.

    Attributes:
        overhead: a name of `axes.OVERHEAD`.
    """

    overhead = FLOAT32

    def fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scale as it is stored, the shift before it is rounded, and the running standard deviation.

        The shift is that of the rounded scale, so an error of the scale does not move the mean.

        Returns:
            (O,) each; the scale is (1,) if all features share it.
        """
        assert self.running_mean is not None, "own models without statistics are refused"
        assert self.running_var is not None, "as the mean"
        spread = (self.running_var + self.eps).sqrt()
        scale = self._stored_scale((1.0 if self.weight is None else self.weight) / spread)
        mean = self.running_mean * scale
        return scale, -mean if self.bias is None else self.bias - mean, spread

    def _stored_scale(self, exact: Tensor) -> Tensor:
        if self.overhead in SHARED_SCALE:
            exact = exact.abs().mean(0, keepdim=True)
        return round_factor(exact, self.overhead)

    def forward(self, x: Tensor) -> Tensor:  # (B, O, ...) -> (B, O, ...)
        if self.overhead == FLOAT32:
            return super().forward(x)
        scale, shift, spread = self.fold()
        rounded = round_terms(shift, self.overhead)
        if not self.training:
            after = [1] * (x.ndim - 2)
            return x * scale.view(-1, *after) + rounded.view(-1, *after)
        assert self.num_batches_tracked is not None, "it keeps statistics"
        assert self.momentum is not None, "own models without a momentum are refused"
        self.num_batches_tracked.add_(1)
        weight, bias = scale.detach() * spread, (rounded - shift).detach()
        if self.weight is not None:
            weight = pass_gradient(weight, self.weight)
        if self.bias is not None:
            bias = self.bias + bias
        return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, True, self.momentum, self.eps)


class ScaleNorm(RoundedNorm):
    """A normalisation without a shift: x * weight / root mean square, of each feature over the batch.

    It does not subtract the mean, because that is a shift in evaluation.

    Args:
        features: O.
    """

    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.register_parameter("bias", None)

    def fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `RoundedNorm.fold`; the shift is zeros, and the spread is the running root mean square."""
        assert self.running_var is not None, "it keeps statistics"
        spread = (self.running_var + self.eps).sqrt()
        scale = self._stored_scale(self.weight / spread)
        return scale, torch.zeros_like(scale), spread

    def forward(self, x: Tensor) -> Tensor:  # (B, O, ...) -> (B, O, ...)
        scale, _, spread = self.fold()
        after = [1] * (x.ndim - 2)
        if not self.training:
            return x * scale.view(-1, *after)
        assert self.running_var is not None, "it keeps statistics"
        assert self.momentum is not None, "as its constructor sets it"
        square = x.square().mean([0, *range(2, x.ndim)])
        weight = self.weight if self.overhead == FLOAT32 else pass_gradient(scale * spread, self.weight)
        self.running_var.copy_(self.running_var + self.momentum * (square.detach() - self.running_var))
        return x * (weight / (square + self.eps).sqrt()).view(-1, *after)


def drop_shifts(model: nn.Module) -> None:
    """Replaces each new batch normalisation in a model by one without a shift, in place."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, ScaleNorm):
                setattr(module, name, ScaleNorm(child.num_features))


@lru_cache
def _rounded_class(plain: type[nn.Module]) -> type[RoundedNorm]:
    """The class of the normalisations of a class, with rounded numbers."""
    return type(f"Rounded{plain.__name__}", (RoundedNorm, plain), {})


class BatchNorm(LayerKind):
    """`nn.BatchNorm1d` and its relatives: x * scale + shift. They are neither split nor quantised.

    A subclass with a forward pass of its own may compute something else, so it is none of them.
    """

    ops = ("affine",)

    def owns(self, module: nn.Module) -> bool:
        is_plain = isinstance(module, nn.modules.batchnorm._BatchNorm) and type(module).forward in FORWARDS
        if isinstance(module, RoundedNorm):
            return True
        return is_plain and not nn.utils.parametrize.is_parametrized(module)

    def set_overhead(self, layer: Any, overhead: str) -> nn.Module:
        if overhead != FLOAT32 and not isinstance(layer, RoundedNorm):
            plain: Any = type(layer)
            layer.__class__ = _rounded_class(plain)
        if isinstance(layer, RoundedNorm):
            layer.overhead = overhead
        return layer

    def count(self, layer: Any) -> Sizes:
        return norm_sizes(layer.num_features, _overhead_of(layer), has_shift=not isinstance(layer, ScaleNorm))

    def pack(self, layer: Any, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        """The operation x * scale + shift; both are computed in double precision and then rounded to float32.

        With another `overhead` they are those of `fold`, to the last bit.

        Raises:
            ValueError: it keeps no statistics, so it answers by its batch and is no such operation.
        """
        if layer.running_mean is None or layer.running_var is None:
            where = prefix.rstrip(".") or "this network"
            raise ValueError(f"a normalisation must keep statistics to be packed, got none in {where}")
        names = {"scale": f"{prefix}scale", "shift": f"{prefix}shift"}
        operation = {"op": "affine", **names}
        overhead = _overhead_of(layer)
        if overhead != FLOAT32 or isinstance(layer, ScaleNorm):
            scale, shift, _ = layer.fold()
            packed = {names["scale"]: pack_factor(scale.detach(), overhead)}
            if isinstance(layer, ScaleNorm):
                return {**operation, "shift": None}, packed
            return operation, packed | {names["shift"]: pack_terms(shift.detach(), overhead)}
        zeros = torch.zeros(layer.num_features, dtype=torch.float64)
        ones = torch.ones(layer.num_features, dtype=torch.float64)
        mean, spread = layer.running_mean.double(), (layer.running_var.double() + layer.eps).sqrt()
        scale = (ones if layer.weight is None else layer.weight.double()) / spread
        shift = (zeros if layer.bias is None else layer.bias.double()) - mean * scale
        return operation, {names["scale"]: scale.float(), names["shift"]: shift.float()}

    def unpack(self, layer: Any, op: Op, tensors: dict[str, Tensor]) -> nn.Module:
        """The layer as x * scale + shift: with the mean 0 and the variance 1, exactly."""
        scale, shift = tensors[op["scale"]], tensors[op["shift"]]
        if shift.shape != layer.running_mean.shape:
            raise ValueError(
                f"{op['shift']} has {len(shift)} features in the file, {layer.num_features} in the module"
            )
        layer.weight, layer.bias, layer.eps = nn.Parameter(scale.expand_as(shift).clone()), nn.Parameter(shift), 0.0
        layer.running_mean.zero_()
        layer.running_var.fill_(1.0)
        return layer

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        product = graph.add("Mul", [x, graph.channels(op["scale"])])
        return product if op["shift"] is None else graph.add("Add", [product, graph.channels(op["shift"])])

    def add_stage(self, stages: StageList, op: Op) -> None:
        stages.add_pointwise(op)


def _overhead_of(layer: nn.Module) -> str:
    return layer.overhead if isinstance(layer, RoundedNorm) else FLOAT32
