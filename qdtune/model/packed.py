"""A trained network as the bytes that are shipped: codes of few bits, steps, biases, folded normalisations.

What is kept of a finished trial is this form and not its float weights: it is exactly what is shipped and what was
tested, and a few kilobytes. `reader.py` reads it without torch. All replicas of a trial lie in one file, tensor NAME
of seed S under `S/NAME`, until `qdtune.export` takes one of them out.

The layout, version 2. 8 bytes: N, unsigned; N bytes: JSON in UTF-8; the rest: the data, which is as long as the
model's `size_bytes`. All numbers are little-endian. The JSON maps the name of each tensor to its `dtype`, `shape` and
`data_offsets` [begin, end) in the data, which the tensors fill without a gap (so far this is safetensors). Its entry
`__metadata__` maps text to text:

    qdtune.packed  2
    qdtune.model   JSON: {"model": "mlp", "inputs": I, "outputs": O, "ops": [...]}
    qdtune.sha256  in hexadecimal, of the JSON above without this entry (keys sorted, ASCII, ", " and ": " between),
                   followed by the data

`ops` are applied in turn, the first to pixels / 127.5 - 1, all in float32; NAME is that of a tensor, or null:

    {"op": "linear", "shape": [O, I], "bits": b, "levels": one of LEVELS, "weight": NAME, "step": NAME,
     "bias": NAME, "act_bits": a, "input_step": NAME, "input_levels": "symmetric" or "unsigned"}
                                                       x <- q(x) W^T + bias
    {"op": "affine", "scale": NAME, "shift": NAME}     x <- x * scale + shift for each feature: a batch normalisation
    {"op": "identity"}                                 x <- x
    {"op": "relu"}                                     x <- max(x, 0)
    {"op": "leaky_relu"}                               x <- x where x > 0, 0.01 x elsewhere
    {"op": "gelu"}                                     x <- x (1 + erf(x / sqrt(2))) / 2: exact, not by tanh
    {"op": "tanh"}                                     x <- tanh(x)
    {"op": "hardtanh"}                                 x <- min(max(x, -1), 1)

With b = 1..16, W is stored as O * I codes of b bits, row by row, in one stream of bits. Code k takes the bits from
k*b to k*b + b - 1, its lowest bit first; bit n of the stream is bit n mod 8 of byte n div 8, where bit 0 is worth 1.
What is left of the last byte is zero. Read as an unsigned number u, a code stands for step * (u - Q), where
Q = 2^(b-1) - 1, and Q = 2^(b-1) where levels is "full"; with b = 1 for step * (2u - 1). Where levels is "ternary"
and b = 2, five codes are a byte, u0 + 3 u1 + 9 u2 + 27 u3 + 81 u4, the first code first; those that are missing in
the last byte are zero. step is one number, or (O, 1), one for each row. With b = 32, W is float32.

q(x) is x where a is null; else, with s for input_step, s * min(max(round(x / s), -Q), Q) with Q = 2^(a-1) - 1, halves
rounded to the even neighbour, and with a = 1 it is s where x >= 0 and -s elsewhere. Where input_levels is "unsigned",
it is s * min(max(round(x / s), 0), 2^a - 1) for any a. (Version 1 has neither levels nor input_levels: "symmetric".)

Where "model" is not "mlp", it names the function of a user's that builds the network: then `ops` only say how tensors
are stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from qdtune.model.factored import ACTIVATIONS, FactoredLinear
from qdtune.model.quantize import QuantLinear
from qdtune.model.signed_file import sign_file, split_file
from qdtune.reader import GRIDS, MODEL, PACKED, VERSION
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.sizes import TRITS

TRIAL = "qdtune.trial_id"
Op = dict[str, Any]


def pack_replicas(
    replicas: Mapping[int, nn.Module], trial_id: str, inputs: int, outputs: int, model: str = "mlp"
) -> bytes:
    """The replicas of one configuration as one safetensors file with its checksum.

    Args:
        replicas: seed -> a trained model, at least one; of each the numbers that evaluation uses.
        trial_id: of the trial that trained them; a file under another name is seen by it.
        inputs, outputs: I of the first layer, O of the last.
        model: `mlp`, whose layers run in the order of its modules; or the factory of another one.
    """
    tensors: dict[str, Tensor] = {}
    for seed, replica in replicas.items():
        ops, own = operations(replica)
        tensors |= {f"{seed}/{name}": tensor.contiguous() for name, tensor in own.items()}
    if model != "mlp":  # their order, and what is between them, is known to its forward pass alone
        ops = [op for op in ops if op["op"] in ("linear", "affine")]
    program = json.dumps({"model": model, "inputs": inputs, "outputs": outputs, "ops": ops})
    metadata = {PACKED: VERSION, MODEL: program, TRIAL: trial_id}
    return sign_file(*split_file(safetensors.torch.save(tensors, metadata=metadata)))


@torch.no_grad()
def operations(model: nn.Module) -> tuple[list[Op], dict[str, Tensor]]:
    """What a model does, module by module, and the tensors it takes: the bytes that `quantize.count_sizes` counts."""
    model.eval()
    tensors: dict[str, Tensor] = {}
    return list(_visit("", model, tensors)), tensors


def pack_codes(codes: Tensor, bits: int, levels: str = "symmetric") -> Tensor:
    """Codes (O, I) of 1..16 bits in a row, uint8 (`sizes.code_bytes`,); `reader.codes` is the way back."""
    low, _, binary = GRIDS[bits, levels]
    unsigned = (codes - low) // (1 + binary)
    if levels == "ternary" and bits == 2:
        digits = nn.functional.pad(unsigned.flatten(), (0, -unsigned.numel() % TRITS)).reshape(-1, TRITS)
        return (digits * 3 ** torch.arange(TRITS)).sum(1).to(torch.uint8)
    stream = (unsigned.reshape(-1, 1) >> torch.arange(bits)) & 1  # (O*I, bits), the lowest first
    padded = nn.functional.pad(stream.flatten(), (0, -stream.numel() % 8)).reshape(-1, 8)
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)


def _visit(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[Op]:
    """The operations of the module called `name` and of those in it; their tensors are put into `tensors`."""
    dot = f"{name}." if name else ""
    if type(module) is nn.Linear or isinstance(module, QuantLinear):
        yield _linear(dot, module, tensors)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        yield _affine(dot, module, tensors)
    elif isinstance(module, FactoredLinear):
        for k, factor in enumerate(module.factors):
            yield from _visit(f"{dot}factors.{k}", factor, tensors)
            if factor is not module.factors[-1]:
                yield from (op for norm in module.norms[k : k + 1] for op in _visit(f"{dot}norms.{k}", norm, tensors))
                yield from _visit(f"{dot}activation", module.activation, tensors)
    elif type(module) in _NAMES:
        yield {"op": _NAMES[type(module)]}
    else:
        kept = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        tensors |= {f"{dot}{k}": t for k, t in kept.items() if k not in module._non_persistent_buffers_set}
        for child, inner in module.named_children():
            yield from _visit(f"{dot}{child}", inner, tensors)


_NAMES = {kind: name for name, kind in ACTIVATIONS.items()}


def _linear(dot: str, layer: nn.Linear, tensors: dict[str, Tensor]) -> Op:
    bits, act_bits, found = FLOAT_BITS, None, {"weight": layer.weight.detach()}
    levels = input_levels = "symmetric"
    if isinstance(layer, QuantLinear):
        bits, act_bits = layer.weight_bits, layer.act_bits
        if layer.weight_quantizer is not None:
            codes, found["step"] = layer.codes()
            levels = layer.weight_quantizer.levels
            found["weight"] = pack_codes(codes, bits, levels)
        if layer.input_quantizer is not None:
            input_levels = layer.input_quantizer.levels
            found["input_step"] = layer.input_quantizer.current(layer.weight)  # in evaluation the same for any input
    if layer.bias is not None:
        found["bias"] = layer.bias.detach()
    tensors |= {f"{dot}{role}": tensor for role, tensor in found.items()}
    names = {role: f"{dot}{role}" if role in found else None for role in ("weight", "step", "bias", "input_step")}
    kinds = {"bits": bits, "levels": levels, "act_bits": act_bits, "input_levels": input_levels}
    return {"op": "linear", "shape": list(layer.weight.shape), **kinds, **names}


def _affine(dot: str, norm: nn.modules.batchnorm._BatchNorm, tensors: dict[str, Tensor]) -> Op:
    """A batch normalisation with its statistics folded in: x * scale + shift, in double precision until the end."""
    none, one = (
        torch.zeros(norm.num_features, dtype=torch.float64),
        torch.ones(norm.num_features, dtype=torch.float64),
    )
    mean = none if norm.running_mean is None else norm.running_mean.double()
    spread = one if norm.running_var is None else (norm.running_var.double() + norm.eps).sqrt()
    scale = (one if norm.weight is None else norm.weight.double()) / spread
    shift = (none if norm.bias is None else norm.bias.double()) - mean * scale
    tensors |= {f"{dot}scale": scale.float(), f"{dot}shift": shift.float()}
    return {"op": "affine", "scale": f"{dot}scale", "shift": f"{dot}shift"}
