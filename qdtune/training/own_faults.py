"""Finds what in a user's model would train or ship wrongly. Each fault names the place, says why and what to do."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdtune.model.dropout import DROPOUTS, is_dropout
from qdtune.model.factored import is_frozen
from qdtune.model.layers.known import LAYERS, kind_of
from qdtune.model.layers.matrix import MatrixKind
from qdtune.reader import DTYPES
from qdtune.spec.structure import LayerShape

SHIPPED_DTYPES = {torch.from_numpy(np.empty(0, dtype)).dtype for dtype in DTYPES.values()}
TORCH_ATTRIBUTES = vars(nn.Module()).keys()  # those in which torch itself keeps parameters, buffers and modules
SEQUENCES = (list, tuple, set, frozenset, deque)


def find_faults(model: nn.Module) -> list[str]:
    """The faults of a model, each as the end of a sentence that begins with `FACTORY builds a model`.

    Only what can be told at once: later checks would call a fault that follows from an earlier one by another name.
    """
    stages = _find_unfinished, _find_wrong_modules, _find_unregistered, _find_layer_faults, _find_tensor_faults
    return next((faults for stage in stages if (faults := list(stage(model)))), [])


def _find_wrong_modules(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        yield from _find_module_faults(name or "it", module)


def find_quantisable(model: nn.Module) -> Iterator[tuple[nn.Module, LayerShape]]:
    """Each layer that `quantize` changes, with its shape; a frozen layer is not split."""
    for module in model.modules():
        kind = kind_of(module)
        if kind is not None and (shape := kind.shape(module)) is not None:
            yield module, shape._replace(is_split=shape.is_split and not is_frozen(module))


def class_name(layer: type[nn.Module]) -> str:
    """The name of a layer class as users write it."""
    is_from_torch = layer.__module__.startswith("torch.nn.")
    return f"nn.{layer.__name__}" if is_from_torch else layer.__name__


def _shipped_buffers(module: nn.Module) -> dict[str, Tensor]:
    """As `quantize.saved_buffers`, but a buffer with two names has both."""
    unsaved = module._non_persistent_buffers_set
    return {name: b for name, b in module._buffers.items() if b is not None and name not in unsaved}


def _find_unfinished(model: nn.Module) -> Iterator[str]:
    """Layers without sizes, and state that is neither a parameter nor a buffer."""
    for name, module in model.named_modules():
        if any(nn.parameter.is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values())):
            lazy = class_name(type(module))
            yield (
                f"with an {lazy} in {name or 'it'}, whose sizes are unknown until its first call: "
                f"give them, as in {lazy.replace('Lazy', '')}(inputs, outputs)"
            )
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, module in model.named_modules(remove_duplicate=False):
        known |= {f"{name}.{buffer}" if name else buffer for buffer in _shipped_buffers(module)}
    for name in model.state_dict().keys() ^ known:
        yield (
            f"whose state_dict differs from its parameters and buffers in {name} (get_extra_state adds such an "
            "entry): keep all state in parameters and buffers"
        )


def _find_unregistered(model: nn.Module) -> Iterator[str]:
    """Layers and tensors that torch does not know of: they are neither trained, counted nor shipped."""
    names = {module: name for name, module in model.named_modules()}
    replaced = {layer for layer, _ in find_quantisable(model)}
    for name, module in model.named_modules():
        for path, found in _find_held(module):
            path = f"{name}.{path}" if name else path
            if isinstance(found, Tensor):
                what = "a parameter" if isinstance(found, nn.Parameter) else "a tensor"
                use = "nn.ParameterList or nn.ParameterDict" if isinstance(found, nn.Parameter) else "register_buffer"
                yield f"with {what} in the attribute {path} that is not trained, counted or shipped: use {use}"
            elif found in replaced:
                yield (
                    f"with the layer {names[found]} once more in {path}, which would miss it when it is split: "
                    "use nn.ModuleList or nn.ModuleDict, or call it by its first name"
                )
            elif found not in names and [*found.parameters(), *found.buffers()]:
                yield (
                    f"with an {class_name(type(found))} in {path} that is not trained, counted or shipped: "
                    "use nn.ModuleList or nn.ModuleDict"
                )


def _find_held(module: nn.Module) -> Iterator[tuple[str, Tensor | nn.Module]]:
    """The tensors and modules in the attributes of one module that torch does not register, each with its path."""
    seen: set[int] = set()
    for name, value in vars(module).items():
        if name not in TORCH_ATTRIBUTES:
            yield from _dig(name, value, seen)


def _dig(path: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Tensor | nn.Module]]:
    """The tensors and modules that a value is or holds: in containers, closures and objects of the user's classes."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor | nn.Module):
        yield path, value
        return
    inside: Any = ()
    if isinstance(value, Mapping):
        inside = [(f"{path}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, SEQUENCES):
        inside = [(f"{path}[{k}]", item) for k, item in enumerate(value)]
    elif isinstance(value, functools.partial):
        inside = [(path, item) for item in (value.func, value.args, value.keywords)]
    elif isinstance(value, types.MethodType):
        inside = [(path, value.__self__)]
    elif isinstance(value, types.FunctionType):
        inside = [(path, cell.cell_contents) for cell in value.__closure__ or () if _is_filled(cell)]
    elif hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        inside = [(f"{path}.{key}", item) for key, item in vars(value).items()]
    for inner, item in inside:
        yield from _dig(inner, item, seen)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that is not assigned yet
        return False


def _find_layer_faults(model: nn.Module) -> Iterator[str]:
    layers = [layer for layer, _ in find_quantisable(model)]
    if not layers:
        plain = tuple(kind.plain for kind in LAYERS if isinstance(kind, MatrixKind))
        *others, last = map(class_name, plain)
        known = f"{', '.join(others)} or {last}"
        near = [(name or "it", m) for name, m in model.named_modules() if isinstance(m, plain)]
        why = ""
        if near:
            name, module = near[0]
            kind = type(module)
            base = class_name(next(one for one in plain if isinstance(module, one)))
            why = f": {name} is a subclass, {kind.__name__}, and may compute something else; use {base} itself"
            if kind in plain:
                why = f": {name} has padding_mode={getattr(module, 'padding_mode', None)!r}; use zeros"
            if nn.utils.parametrize.is_parametrized(module):
                why = f": {name} has a parametrization; use a plain {base}"
        yield f"without any {known}: there is nothing to split and quantise{why}"
    for layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks:
            name = class_name(type(layer))
            yield f"with hooks on an {name} (weight_norm sets one), which a layer that is split would lose"


def _find_tensor_faults(model: nn.Module) -> Iterator[str]:
    """Parameters and buffers that cannot be stacked, trained or shipped."""
    params = list(model.named_parameters(remove_duplicate=False))
    for name, p in params:
        if p.dtype != torch.float32:
            yield f"whose parameter {name} is {p.dtype}: parameters must be float32, call .float()"
    if not any(p.requires_grad for _, p in params):
        yield "whose parameters are all frozen: nothing is left to train"
    for name, module in model.named_modules(remove_duplicate=False):
        for key, buffer in _shipped_buffers(module).items():
            path = f"{name}.{key}" if name else key
            if buffer.dtype not in SHIPPED_DTYPES or buffer.layout != torch.strided:
                is_plain = buffer.layout == torch.strided
                what = buffer.dtype if is_plain else buffer.layout
                use = "torch.view_as_real" if buffer.dtype.is_complex else ".float()" if is_plain else ".to_dense()"
                yield f"whose buffer {path} is {what}, which a packed file cannot hold: use {use}"
    names: dict[int, str] = {}
    places: dict[int, str] = {}
    for name, tensor in (*params, *model.named_buffers(remove_duplicate=False)):
        if id(tensor) in names:
            yield (
                f"whose {name} is also its {names[id(tensor)]}: shared weights cannot be split in two places, and a "
                "shared buffer would become two; register it once"
            )
            continue
        names[id(tensor)] = name
        if tensor.layout != torch.strided or not tensor.numel():
            continue
        if tensor.numel() > 1 and any(step == 0 and size > 1 for size, step in _axes(tensor)):
            yield f"whose {name} is expanded, so that its elements share memory: add .clone()"
        place = tensor.untyped_storage().data_ptr()
        if place in places:
            yield f"whose {name} shares memory with its {places[place]}: add .clone()"
        places[place] = name


def _axes(tensor: Tensor) -> Iterator[tuple[int, int]]:
    return zip(tensor.shape, tensor.stride(), strict=True)


def _find_module_faults(name: str, module: nn.Module) -> Iterator[str]:
    """Modules that replicas trained together cannot run, or that evaluate otherwise than what is shipped."""
    kind = class_name(type(module))
    if isinstance(module, nn.RNNBase | nn.LSTMCell):
        yield (
            f"with an {kind} in {name}: its fused kernel cannot train replicas together (vmap). Write the loop over "
            "time with nn.Linear layers, which are split and quantised too"
        )
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        yield (
            f"with an {kind} in {name} that keeps no statistics (track_running_stats=False): it would answer by the "
            "batch that it is tested with. Leave that argument out, or use nn.LayerNorm or nn.GroupNorm"
        )
    if isinstance(module, nn.modules.dropout._DropoutNd) and not is_dropout(module):
        base = class_name(next(one for one in DROPOUTS if isinstance(module, one)))
        yield f"with a subclass of dropout, {kind}, in {name}, which may compute something else: use {base} itself"
    if isinstance(module, nn.MultiheadAttention) and module.dropout > 0:
        yield (
            f"with dropout {module.dropout:g} inside the {kind} {name}, where replicas that are trained together "
            "cannot draw: set it to 0, and use nn.Dropout after it"
        )
