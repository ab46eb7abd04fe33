"""The parts of a user's model that stay float32 at any bits, because no layer kind quantises them."""

from __future__ import annotations

from collections import Counter

from torch import nn

from qdtune.model.layers.known import kind_of
from qdtune.model.networks import build_own
from qdtune.model.quantize import saved_buffers
from qdtune.spec.sweep_file import Spec
from qdtune.training.own_faults import class_name, find_quantisable

BARE = "parameters of the model itself"


def count_unquantised(model: nn.Module) -> dict[str, int]:
    """class name -> the bytes of its parameters and saved buffers, of all modules that no layer kind owns.

    Args:
        model: not split yet.
    """
    known = {layer for layer, _ in find_quantisable(model)}
    found: Counter[str] = Counter()
    for module in model.modules():
        if module in known or kind_of(module) is not None:
            continue
        tensors = [*module.parameters(recurse=False), *saved_buffers(module).values()]
        if size := sum(tensor.numel() * tensor.element_size() for tensor in tensors):
            found[BARE if module is model else class_name(type(module))] += size
    return dict(found)


def find_unquantised(spec: Spec) -> dict[str, int]:
    """As `count_unquantised`, of a sweep's model of the first hidden widths and resolution; empty without a factory.

    Args:
        spec: returned by `own_model.describe_own_model`.
    """
    info, sha256 = spec.data.info, spec.model.sha256
    if not spec.model.factory or info is None or sha256 is None:
        return {}
    hidden, resolution = ((spec.axes[name].choices or ())[0] for name in ("hidden", "resolution"))
    seen = info.averaged(resolution)
    outputs = spec.task.outputs(seen)
    return count_unquantised(build_own(spec.model.factory, sha256, seen.inputs, hidden, outputs, seed=0))
