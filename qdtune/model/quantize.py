"""Networks of few bits: linear layers with quantised weights and inputs, and the bytes they ship as.

Source: the notebook's `SymQuantLinear`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdtune.model.factored import swap
from qdtune.model.quantizer import Quantizer, codes
from qdtune.spec.axes import GRANULARITY, LEVELS, SCALE
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.sizes import FLOAT_BYTES, Sizes, matrix_sizes, norm_sizes, other_sizes


class QuantLinear(nn.Linear):
    """A linear layer whose weights, and where asked whose inputs, are fake-quantised in every forward pass.

    Takes over the weight and bias of `linear`; nothing is copied.

    Args:
        linear: the layer it replaces.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: 1..16, or None for float inputs.
        scale: a name of `axes.SCALE`, for weights and inputs.
        levels: of the weights, a name of `axes.LEVELS`.
        granularity: of the weights' step size: one for the `tensor`, or one for each output `channel`. Between the
            factors of a chain the latter is a scale vector, as Double Binary Factorization (arXiv 2505.11076) and
            LittleBit (arXiv 2506.13771) have it between their two sign matrices. They have one more for the inputs
            of the chain, and take all from a trained matrix; here a factor scales its outputs alone, at any depth
            and number of bits, and `lsq` trains the vector with the task's loss.

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
        if weight_bits != FLOAT_BITS and not 1 <= weight_bits <= 16:
            raise ValueError(f"weight_bits must be 1 to 16, or 32 for float, got {weight_bits}")
        if act_bits is not None and not 1 <= act_bits <= 16:
            raise ValueError(f"act_bits must be 1 to 16, or None for float, got {act_bits}")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_bits, self.act_bits = weight_bits, act_bits
        self.weight_quantizer: Quantizer | None = None
        self.input_quantizer: Quantizer | None = None
        if weight_bits != FLOAT_BITS:
            rows = self.out_features if granularity == "channel" else None
            self.weight_quantizer = Quantizer(weight_bits, scale, levels, rows).to(self.weight.device)
            self.weight_quantizer.start(self.weight)
        if act_bits is not None:
            self.input_quantizer = Quantizer(act_bits, scale, observe=True).to(self.weight.device)

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor]:
        """The integer codes (O, I) of the weights and their step size, which are what gets shipped.

        Raises:
            ValueError: the weights of this layer are float.
        """
        quantizer = self.weight_quantizer
        if quantizer is None:
            raise ValueError("this layer's weights are float (weight_bits 32): they have no codes")
        step = quantizer.step_size(self.weight)
        return codes(self.weight, step, quantizer.grid).to(torch.int32), step


def quantize(
    model: nn.Module,
    weight_bits: int,
    act_bits: int | None = None,
    scale: str = "absmean",
    levels: str = "symmetric",
    granularity: str = "tensor",
) -> nn.Module:
    """The model with every `nn.Linear`, at any level, made a `QuantLinear`; changed in place.

    Layers quantised before get the new bits; 32 bits without `act_bits` makes them plain layers again. Other
    subclasses of `nn.Linear` are left alone, as in `decompose`.

    Args:
        model: any module; where it is a linear layer itself, the returned one replaces it.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: bits of each layer's input, 1..16, or None for float.
        scale: how the step size is chosen, a name of `axes.SCALE`.
        levels, granularity: of the weights, as of `QuantLinear`.

    Raises:
        ValueError: bits out of range or an unknown name.
    """
    for axis, name in ((SCALE, scale), (LEVELS, levels), (GRANULARITY, granularity)):
        axis.check(name)

    def replace(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear and not isinstance(layer, QuantLinear):
            return None
        if weight_bits == FLOAT_BITS and act_bits is None:
            return _plain(layer)
        return QuantLinear(layer, weight_bits, act_bits, scale, levels, granularity)

    return swap(model, replace)


def _plain(layer: nn.Linear) -> nn.Linear:
    if type(layer) is nn.Linear:
        return layer
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


def calibrate_alike(models: Sequence[nn.Module], x: Tensor) -> None:
    """Calibrates models of one structure, which are packed as one program: what is signed in any is so in all."""
    for model in models:
        calibrate(model, x)
    for place in zip(*map(_observers, models), strict=True):
        for quantizer in place:
            quantizer.signed = any(other.levels == "symmetric" for other in place)
    for model in models:
        if any(quantizer.signed != (quantizer.levels == "symmetric") for quantizer in _observers(model)):
            calibrate(model, x)


def _observers(model: nn.Module) -> list[Quantizer]:
    return [m for m in model.modules() if isinstance(m, Quantizer) and m.observe]


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Sets the steps of all activation quantisers from one batch x (B, ...), layer by layer in the order of use."""

    def set_first(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        quantizer.start(args[0])  # type: ignore[operator]

    observers = _observers(model)
    hooks = [m.register_forward_pre_hook(set_first) for m in observers]
    try:
        if observers:
            model.eval()
            model(x)
    finally:
        for hook in hooks:
            hook.remove()


def count_sizes(model: nn.Module) -> Sizes:
    """The bytes that have to be shipped for a built model, from its tensors.

    Quantised layers count their codes and steps, batch normalisations a scale and a shift per feature (their
    statistics fold into these), every other parameter four bytes, tables (buffers that are saved) what they take.
    """
    total = Sizes()
    for module in model.modules():
        if isinstance(module, Quantizer):
            continue  # its step is counted with the layer it belongs to
        if type(module) is nn.Linear or isinstance(module, QuantLinear):  # other subclasses are never split
            biases = 0 if module.bias is None else module.bias.numel()
            bits, act_bits, own = FLOAT_BITS, None, None
            if isinstance(module, QuantLinear):
                bits, act_bits, own = module.weight_bits, module.act_bits, module.weight_quantizer
            of_weights = (own.levels, own.step.numel()) if own else ()
            total += matrix_sizes(module.weight.numel(), biases, bits, act_bits, *of_weights)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            total += norm_sizes(module.num_features)
        else:
            saved = [
                b for name, b in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set
            ]
            params = sum(p.numel() for p in module.parameters(recurse=False))
            total += other_sizes(params, FLOAT_BYTES * params + sum(b.nbytes for b in saved))
    return total
