"""Networks of few bits: layers with quantised weights and inputs, their calibration, and the bytes they ship as."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdtune.model.factored import swap
from qdtune.model.layers.known import kind_of
from qdtune.model.quantizer import Quantizer
from qdtune.spec.axes import GRANULARITY, LEVELS, SCALE
from qdtune.spec.sizes import FLOAT_BYTES, Sizes, other_sizes


def quantize(
    model: nn.Module,
    weight_bits: int,
    act_bits: int | None = None,
    scale: str = "absmean",
    levels: str = "symmetric",
    granularity: str = "tensor",
) -> nn.Module:
    """The model with every layer that its kind can quantise, at any level, made one of few bits; changed in place.

    Layers quantised before get the new bits; 32 bits without `act_bits` makes them plain layers again.

    Args:
        model: any module; if it is such a layer itself, the returned one replaces it.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: bits of each layer's input, 1..16, or None for float.
        scale: how the step size is chosen, a name of `axes.SCALE`.
        levels: the codes of the weights, a name of `axes.LEVELS`.
        granularity: of the weights' step size: one for the `tensor`, or one for each output `channel`.

    Raises:
        ValueError: bits out of range or an unknown name.
    """
    for axis, name in ((SCALE, scale), (LEVELS, levels), (GRANULARITY, granularity)):
        axis.check(name)

    def replace(layer: nn.Module) -> nn.Module | None:
        kind = kind_of(layer)
        return kind.quantize(layer, weight_bits, act_bits, scale, levels, granularity) if kind else None

    return swap(model, replace)


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

    Each kind counts its layers; of other modules every parameter counts four bytes, and tables (buffers that are
    saved) count what they take.
    """
    total = Sizes()
    for module in model.modules():
        if isinstance(module, Quantizer):
            continue  # its step is counted with the layer it belongs to
        kind = kind_of(module)
        total += _other_sizes(module) if kind is None else kind.count(module)
    return total


def _other_sizes(module: nn.Module) -> Sizes:
    """The bytes of a module of no known kind, without those of the modules in it."""
    params = sum(p.numel() for p in module.parameters(recurse=False))
    return other_sizes(params, FLOAT_BYTES * params + sum(b.nbytes for b in saved_buffers(module).values()))


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module itself that go with a saved model."""
    own = module.named_buffers(recurse=False)
    return {name: buffer for name, buffer in own if name not in module._non_persistent_buffers_set}
