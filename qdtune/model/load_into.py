"""Loads a packed file into a user's own module, which then computes what was tested.

A packed file of an own model has its tensors by the names of its modules. The module is built by the same factory at
the same widths. Its layers become those of the file: split, with fixed codes and step sizes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdtune import reader
from qdtune.model.chain import Chain
from qdtune.model.factored import swap_modules
from qdtune.model.layers.kind import Op
from qdtune.model.layers.known import kind_of_op, splitter_of
from qdtune.model.layers.matrix import MatrixKind, Quantized
from qdtune.model.overhead import overhead_of
from qdtune.model.packed import OWN_NAMES, operations
from qdtune.model.quantizer import Quantizer, round_to_codes
from qdtune.reader import Model, ReaderError
from qdtune.spec.choices import FLOAT_BITS

ROLES = ("weight", "step", "bias", "input_step", "scale", "shift")  # the keys of an operation that name tensors


class FixedQuantizer(Quantizer):
    """A quantiser with the step size of a file, in training and in evaluation."""

    def __init__(self, bits: int, levels: str, step: Tensor, observe: bool) -> None:
        super().__init__(bits, "lsq", levels, observe=observe)
        self.step = nn.Parameter(step, requires_grad=False)

    def step_size(self, x: Tensor) -> Tensor:
        return self.step

    def current_step(self, x: Tensor) -> Tensor:
        return self.step

    def forward(self, x: Tensor) -> Tensor:
        return round_to_codes(x, self.step, self.grid) * self.step


class FixedCodes(Quantized):
    """A layer whose weight is codes, int8 or int16, times a step size; listed before the class of its kind.

    Attributes:
        codes: in the shape of the weight.
        weight_step: one number, or one per output channel.
    """

    codes: Tensor
    weight_step: Tensor

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.quantized_weight()

    def quantized_weight(self) -> Tensor:
        return self.codes.to(self.weight_step.dtype) * self._step()

    def weight_codes(self) -> tuple[Tensor, Tensor]:
        return self.codes, self._step()

    def _step(self) -> Tensor:
        step = self.weight_step
        return step.view(-1, *[1] * (self.codes.ndim - 1)) if step.ndim else step


@lru_cache
def _fixed_class(quantized: type[Quantized]) -> type[Quantized]:
    """The class of a layer kind's quantised layers with fixed codes."""
    return type(f"Fixed{quantized.__name__}", (FixedCodes, quantized), {})


@torch.no_grad()
def load_into(module: nn.Module, file: str | os.PathLike[str] | bytes) -> nn.Module:
    """The module with the numbers of a packed file, in evaluation mode; it computes what was tested.

    Its inputs are floats (B, I) as in training: pixels / 127.5 - 1, or rows of another type as they are. With a
    `resolution` the pixels are averaged down first: `reader.load(file).first_inputs(pixels)` makes these inputs. It
    is for inference.

    Args:
        module: as the factory builds it at the same widths, not split yet; it is changed in place. If it is a layer
            itself, the returned module replaces it.
        file: written by `qdtune export`, or its bytes.

    Raises:
        ReaderError: the file is damaged or belongs to another module.
    """
    model = reader.load(file if isinstance(file, bytes) else Path(file))
    if (name := model.program["model"]) in OWN_NAMES:
        raise ReaderError(f"the model {name} in this file needs no module: use qdtune.reader.load(file).logits(x)")
    try:
        new: dict[nn.Module, nn.Module] = {}
        for path, ops in _group_by_layer(module, model.program["ops"]).items():
            layer = module.get_submodule(path)
            is_whole = _path_of(ops[0]) == path
            new[layer] = _load_layer(layer, ops[0], model) if is_whole else _load_chain(layer, ops, model, path)
        loaded = swap_modules(module, new.get)
        _copy_rest(loaded, model)
    except ReaderError:
        raise
    except (AttributeError, ValueError, KeyError, IndexError, RuntimeError, AssertionError) as error:
        what = f"the module must be built as in the sweep, by {model.program['model']} at the same widths"
        raise ReaderError(f"{what}, got {type(error).__name__}: {error}"[:300]) from error
    loaded.eval().requires_grad_(False)
    _check_same(loaded, model)
    return loaded


def _path_of(op: Op) -> str:
    """The path of the module that an operation packs."""
    role = "weight" if "weight" in op else "scale"
    return str(op[role])[: -len(role)].rstrip(".")


def _group_by_layer(module: nn.Module, ops: list[Op]) -> dict[str, list[Op]]:
    """The operations with tensors, by the path of the module that they come from; a chain has several."""
    modules = dict(module.named_modules())
    groups: dict[str, list[Op]] = {}
    for op in ops:
        if op["op"] == reader.AVERAGE or not kind_of_op(op["op"]).has_tensors:  # there is nothing to load
            continue
        path = _path_of(op)
        for marker in ("factors.", "norms."):
            before, found, number = path.rpartition(marker)
            outer = before.rstrip(".")
            if found and number.isdigit() and outer in modules and splitter_of(modules[outer]) is not None:
                path = outer
        groups.setdefault(path, []).append(op)
    return groups


def _load_chain(layer: nn.Module, ops: list[Op], model: Model, path: str) -> Chain:
    """The chain of factors that replaces a layer."""
    kind = splitter_of(layer)
    assert kind is not None, f"{path} is no layer that is split"
    factors = [op for op in ops if "weight" in op]
    norms = [op for op in ops if "weight" not in op]
    between = model.program.get("between", {}).get(path)
    if between is None and len(factors) > 1:
        raise ReaderError(
            f"the file does not name the activation between the factors of {path}: it was written by an older qdtune"
        )
    chain = kind.split(layer, len(factors), between or "identity", bool(norms))
    for k, op in enumerate(factors):
        chain.factors[k] = _load_layer(chain.factors[k], op, model)
    for k, op in enumerate(norms):
        chain.norms[k] = _load_layer(chain.norms[k], op, model)
    return chain


def _load_layer(layer: Any, op: Op, model: Model) -> nn.Module:
    """The layer of an operation; the given one has its shape."""
    kind = kind_of_op(op["op"])
    overhead = overhead_of(model.stored[op[role]].dtype.name for role in reader.NUMBERS if op.get(role))
    if not isinstance(kind, MatrixKind):
        tensors = {op[role]: _tensor(model.tensors[op[role]]) for role in ROLES if op.get(role)}
        return kind.set_overhead(kind.unpack(layer, op, tensors), overhead)
    if list(layer.weight.shape) != op["shape"] or (layer.bias is None) != (op["bias"] is None):
        has = "with" if op["bias"] else "without"
        raise ReaderError(
            f"the module must be built as in the sweep: {op['weight']} has the shape {op['shape']} {has} a bias in "
            f"the file, {list(layer.weight.shape)} {'without' if layer.bias is None else 'with'} one in the module"
        )
    layer.weight = nn.Parameter(_tensor(model.tensors[op["weight"]]))
    if op["bias"] is not None:
        layer.bias = nn.Parameter(_tensor(model.tensors[op["bias"]]))
    for key, value in kind.settings(layer).items():
        if op[key] != value:
            raise ReaderError(
                f"the module must be built as in the sweep: {op['weight']} has {key} {op[key]} in the file, "
                f"{value} in the module"
            )
    step = None if op["step"] is None else _tensor(model.tensors[op["step"]])
    levels, granularity = op["levels"], "channel" if step is not None and step.ndim else "tensor"
    made = kind.set_overhead(kind.quantize(layer, op["bits"], op["act_bits"], "lsq", levels, granularity), overhead)
    if not isinstance(made, Quantized):
        return layer
    if op["act_bits"] is not None:
        input_step = _tensor(model.tensors[op["input_step"]])
        made.input_quantizer = FixedQuantizer(op["act_bits"], op["input_levels"], input_step, observe=True)
    if op["bits"] != FLOAT_BITS:
        assert step is not None, "a layer of few bits has a step size"
        made.weight_quantizer = FixedQuantizer(op["bits"], levels, step, observe=False)
        codes = torch.from_numpy(model.tensors[f"{op['weight']}.codes"])
        quantized: Any = type(made)
        made.__class__ = _fixed_class(quantized)
        del made._parameters["weight"]
        made.register_buffer("codes", codes.to(torch.int8 if op["bits"] <= 8 else torch.int16))
        made.register_buffer("weight_step", step)
        made.digits = made.find_digits()
    return made


def _copy_rest(loaded: nn.Module, model: Model) -> None:
    """Copies the tensors of all other modules."""
    taken = {op.get(role) for op in model.program["ops"] for role in ROLES}
    own = dict((*loaded.named_parameters(), *loaded.named_buffers()))
    for name in model.stored.keys() - taken:
        if name not in own or own[name].shape != model.stored[name].shape:
            there = tuple(own[name].shape) if name in own else "nothing"
            raise ReaderError(
                f"the module must be built as in the sweep: {name} has the shape {model.stored[name].shape} in the "
                f"file, {there} in the module"
            )
        own[name].copy_(_tensor(model.stored[name]))


def _check_same(loaded: nn.Module, model: Model) -> None:
    """Packs the module again, which must give the tensors of the file: none is missing, and none is another."""
    packed: Mapping[str, Tensor] = operations(loaded)[1]
    for name in sorted(packed.keys() ^ model.stored.keys()):
        where = "module" if name in packed else "file"
        raise ReaderError(f"the module must be built as in the sweep: only the {where} has {name}")
    for name, array in model.stored.items():
        if packed[name].contiguous().numpy().tobytes() != array.tobytes():
            raise ReaderError(f"the module must take the numbers of the file, got others in {name}")


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.copy())
