"""Quantises networks: layers with quantised weights and inputs, their calibration, and their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdtune.model.chain import Chain
from qdtune.model.factored import swap_modules
from qdtune.model.layers.known import kind_of
from qdtune.model.layers.matrix import Digits, Quantized
from qdtune.model.quantizer import Quantizer
from qdtune.spec.axes import GRANULARITY, LEVELS, OVERHEAD, SCALE
from qdtune.spec.sizes import FLOAT_BYTES, Sizes, other_sizes
from qdtune.spec.structure import of_each


def quantize(
    model: nn.Module,
    weight_bits: int | tuple[int, ...],
    act_bits: int | tuple[int | None, ...] | None = None,
    scale: str = "absmean",
    levels: str = "symmetric",
    granularity: str = "tensor",
    overhead: str = "float32",
) -> nn.Module:
    """The model with every layer quantised, at any level, if its kind can quantise it; in place.

    A layer that is already quantised gets the new bits. 32 bits without `act_bits` make it a float layer again.

    Args:
        model: any module; if it is a layer that is quantised, the returned module replaces it.
        weight_bits: 1..16, or 32 for float weights; or a tuple of those of each layer before the split, in the order
            of modules. All factors of a layer have its bits.
        act_bits: bits of each layer's input, 1..16, or None for float; or a tuple as for `weight_bits`.
        scale: the rule of the step size, a name of `axes.SCALE`.
        levels: of the weights, a name of `axes.LEVELS`.
        granularity: a name of `axes.GRANULARITY`: one step size for the weight `tensor`, or one per output `channel`.
        overhead: of biases, normalisations and step sizes, a name of `axes.OVERHEAD`, see `overhead.py`.

    Raises:
        ValueError: bits out of range, bits of another number of layers, or an unknown name.
    """
    places = place_layers(model)
    each, inputs = (of_each(bits, len(set(places.values()))) for bits in (weight_bits, act_bits))
    names = ((SCALE, scale), (LEVELS, levels), (GRANULARITY, granularity), (OVERHEAD, overhead))
    for axis, name in names:
        axis.check(name)

    def replace(layer: nn.Module) -> nn.Module | None:
        kind = kind_of(layer)
        if kind is None:
            return None
        if layer not in places:
            return kind.set_overhead(layer, overhead)
        place = places[layer]
        made = kind.quantize(layer, each[place], inputs[place], scale, levels, granularity)
        return made and kind.set_overhead(made, overhead)

    return swap_modules(model, replace)


def place_layers(model: nn.Module) -> dict[nn.Module, int]:
    """The place of each layer that `quantize` changes, among those before the split, in the order of modules.

    The factors of a layer have its place.
    """
    layers: list[list[nn.Module]] = []
    chained: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Chain):
            layers.append([*module.factors])
            chained |= {*module.factors}
        elif module not in chained and (kind := kind_of(module)) is not None and kind.shape(module) is not None:
            layers.append([module])
    return {factor: place for place, factors in enumerate(layers) for factor in factors}


def calibrate_alike(models: Sequence[nn.Module], x: Tensor) -> None:
    """Calibrates models of one structure.

    One program describes all of them, so an input that is signed in one model is signed in all.
    """
    for model in models:
        calibrate(model, x)
    for place in zip(*map(_find_observers, models), strict=True):
        for quantizer in place:
            quantizer.signed = any(other.levels == "symmetric" for other in place)
    for model in models:
        if any(quantizer.signed != (quantizer.levels == "symmetric") for quantizer in _find_observers(model)):
            calibrate(model, x)


def _find_observers(model: nn.Module) -> list[Quantizer]:
    """The quantisers of activations, in the order of modules."""
    return [m for m in model.modules() if isinstance(m, Quantizer) and m.observe]


def read_signs(model: nn.Module) -> list[bool]:
    """Whether each activation of a calibrated model can be negative, in the order of modules: see `set_signs`."""
    return [bool(quantizer.signed) for quantizer in _find_observers(model)]


def set_signs(model: nn.Module, signs: Sequence[bool]) -> None:
    """Gives the activation quantisers the levels that calibration gave to those of a model of the same structure.

    Raises:
        ValueError: the model has more or fewer of them.
    """
    for quantizer, signed in zip(_find_observers(model), signs, strict=True):
        quantizer.set_sign(signed)


def read_digits(model: nn.Module) -> list[Digits | None]:
    """The `digits` of each layer at the bits of this model, in the order of modules: see `set_digits`."""
    return [layer.find_digits() for layer in model.modules() if isinstance(layer, Quantized)]


def set_digits(model: nn.Module, digits: Sequence[Digits | None]) -> None:
    """Says how evaluation may sum codes in float32, to a model of the same structure that does not know its bits."""
    layers = [layer for layer in model.modules() if isinstance(layer, Quantized)]
    for layer, one in zip(layers, digits, strict=True):
        layer.digits = one


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Sets the step sizes of all activation quantisers from one batch x (B, ...), in order of use.

    A layer that is called more than once gets one step size, from the inputs of all its calls so far.
    """
    seen: dict[nn.Module, list[Tensor]] = {}

    def collect(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls = seen.setdefault(layer, [])
        calls.append(args[0])
        layer.input_quantizer.start(join_rows(calls))  # type: ignore[operator, union-attr]

    layers = [m for m in model.modules() if isinstance(getattr(m, "input_quantizer", None), Quantizer)]
    hooks = [layer.register_forward_pre_hook(collect) for layer in layers]
    try:
        if layers:
            model.eval()
            model(x)
    finally:
        for hook in hooks:
            hook.remove()


def join_rows(inputs: Sequence[Tensor]) -> Tensor:
    """Inputs (B, ...) of one layer as one tensor; a column of numbers if images of several sizes are among them."""
    if len({x.shape[1:] for x in inputs}) == 1:
        return torch.cat(list(inputs)) if len(inputs) > 1 else inputs[0]
    widths = {x.shape[-1] for x in inputs}
    width = widths.pop() if len(widths) == 1 else 1
    return torch.cat([x.reshape(-1, width) for x in inputs])


def count_sizes(model: nn.Module) -> Sizes:
    """The bytes to ship of a built model, counted from its tensors.

    Each kind counts its layers. Of other modules, a parameter counts four bytes, and a saved buffer its own bytes.
    """
    total = Sizes()
    for module in model.modules():
        if isinstance(module, Quantizer):
            continue  # its layer counts its step size
        kind = kind_of(module)
        total += _other_sizes(module) if kind is None else kind.count(module)
    return total


def _other_sizes(module: nn.Module) -> Sizes:
    """The bytes of a module that belongs to no kind, without its child modules."""
    params = sum(p.numel() for p in module.parameters(recurse=False))
    return other_sizes(params, FLOAT_BYTES * params + sum(b.nbytes for b in saved_buffers(module).values()))


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that a saved model holds, without those of its child modules."""
    own = module.named_buffers(recurse=False)
    return {name: buffer for name, buffer in own if name not in module._non_persistent_buffers_set}
