"""Describes what a user's model consists of, from its tensors and from one forward pass.

Only layers of known kinds are split and quantised (`model/layers`). Other modules are not changed, and their bytes
count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdtune.model.layers.batch_norm import BatchNorm
from qdtune.model.layers.known import kind_of
from qdtune.model.quantize import count_sizes
from qdtune.plugins import PluginError
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.sizes import FLOAT_BYTES
from qdtune.spec.structure import LayerShape, Structure
from qdtune.training.own_faults import find_quantisable


class Call(NamedTuple):
    """One call of a layer in a forward pass: the numbers of one sample that it reads and writes."""

    layer: nn.Module
    reads: int
    writes: int


def describe_structure(model: nn.Module) -> Structure:
    """The structure of a network that is not split yet, as far as its tensors tell it.

    Raises:
        AssertionError: a layer kind counts other bytes than follow from its shapes.
    """
    whole = count_sizes(model)
    layers = Structure(tuple(shape for _, shape in find_quantisable(model)))
    alone = layers.sizes(1, FLOAT_BITS, None)
    norms = (whole.bias_bytes - alone.bias_bytes) // (2 * FLOAT_BYTES)  # a scale and a shift per feature
    structure = layers._replace(
        norms=norms,
        norm_layers=sum(isinstance(kind_of(module), BatchNorm) for module in model.modules()),
        other=whole.params - alone.params - 2 * norms,
        other_bytes=whole.other_bytes,
    )
    assert structure.sizes(1, FLOAT_BITS, None) == whole, "the sizes by arithmetic and those by tensors disagree"
    return structure


def trace_structure(factory: str, model: nn.Module, x: Tensor) -> Structure:
    """The structure of a network, with what a forward pass of x (N, I) tells: the order of layers, and their calls.

    Raises:
        PluginError: a layer gets its input by name, but a quantised layer names it otherwise.
    """
    structure, calls = describe_structure(model), _record_calls(factory, model, x)
    layers = [layer for layer, _ in find_quantisable(model)]
    split = [layer for layer, shape in zip(layers, structure.layers, strict=True) if shape.is_split]
    ran = [call.layer for call in calls]
    split_ran = [layer for layer in ran if layer in split]
    return structure._replace(
        layers=tuple(_count_calls(layers, structure.layers, calls)),
        head=split.index(split_ran[-1]) if split_ran and split_ran[-1] is not split[-1] else None,
        unsplit_end=layers.index(ran[-1]) if ran and ran[-1] not in split else None,
    )


@torch.no_grad()
def _record_calls(factory: str, model: nn.Module, x: Tensor) -> list[Call]:
    """The calls of the layers that are quantised, in turn."""
    names = {layer: name for name, layer in model.named_modules()}
    calls: list[Call] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        if not given:
            what = f"{names[layer]} must be called without the name of its input, as in {names[layer]}(x)"
            raise PluginError(f"{factory}: {what}")
        calls.append(Call(layer, given[0].numel() // len(x), found.numel() // len(x)))

    hooks = [layer.register_forward_hook(note) for layer, _ in find_quantisable(model)]
    try:
        model.eval()(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _count_calls(
    layers: Sequence[nn.Module], shapes: Sequence[LayerShape], calls: Sequence[Call]
) -> Iterator[LayerShape]:
    """The shapes of layers, with what their calls read and write."""
    for layer, shape in zip(layers, shapes, strict=True):
        seen = [(call.reads, call.writes) for call in calls if call.layer is layer]
        if not seen or seen == [(shape.inputs, shape.outputs)]:
            yield shape._replace(positions=len(seen))
            continue
        reads, writes = max(seen)
        yield shape._replace(positions=sum(n for _, n in seen) // shape.outputs, reads=reads, writes=writes)


@torch.no_grad()
def hash_loaded(model: nn.Module, other: nn.Module) -> str:
    """A hash of the weights that are equal in models of two seeds, so that no seed has drawn them; empty if none are.

    They come from a checkpoint, for example, which may change while the source of the factory does not.
    """
    digest, is_empty = hashlib.sha256(), True
    others = dict(other.named_parameters())
    for name, p in model.named_parameters():
        is_constant = not p.numel() or bool((p == p.flatten()[0]).all())
        if not is_constant and name in others and torch.equal(p, others[name]):
            digest.update(f"{name} {tuple(p.shape)} ".encode() + p.numpy().tobytes())
            is_empty = False
    return "" if is_empty else digest.hexdigest()[:24]
