"""A trained network as the bytes that are shipped: codes of few bits, steps, biases, folded normalisations.

What is kept of a finished trial is this form and not its float weights: it is exactly what is shipped and what was
tested, and a few kilobytes. `reader.py` reads it without torch. All replicas of a trial lie in one file, tensor NAME
of seed S under `S/NAME`, until `qdtune export` takes one of them out.

The layout, version 2. 8 bytes: N, unsigned; N bytes: JSON in UTF-8; the rest: the data, which is as long as the
model's `size_bytes`. All numbers are little-endian. The JSON maps the name of each tensor to its `dtype`, `shape` and
`data_offsets` [begin, end) in the data, which the tensors fill without a gap (so far this is safetensors). Its entry
`__metadata__` maps text to text:

    qdtune.packed  2, 3 if the rows are not uint8, 4 if there is an operation that is marked with 4 below, or 5 if
                   there is one that is marked with 5, or a step, bias, scale or shift that is not float32
    qdtune.model   JSON: {"model": "mlp", "inputs": I, "outputs": O, "ops": [...]}; in version 3 also "input": the
                   type of the rows, int16, uint16 or float32
    qdtune.sha256  in hexadecimal, of the JSON above without this entry (keys sorted, ASCII, ", " and ": " between),
                   followed by the data

The writer makes equal bytes of equal models. It sorts the keys of every object of that JSON, `__metadata__` included.
It writes ASCII with ", " and ": " between, and adds spaces at the end until N is a multiple of 8. The tensors lie as
safetensors lays them out: wider dtypes first, then by name. A reader accepts any order: older writers kept none.

`ops` are applied in turn, the first to pixels / 127.5 - 1, or if there is an "input" to the rows as float32; all in
float32. "average" alone is applied before that, to the pixels, and is always the first.
If the rows are to be normalised, the first operation is `affine`. NAME is that of a tensor, or null:

    {"op": "linear", "shape": [O, I], "bits": b, "levels": one of LEVELS, "weight": NAME, "step": NAME,
     "bias": NAME, "act_bits": a, "input_step": NAME, "input_levels": "symmetric" or "unsigned"}
                                                       x <- q(x) W^T + bias
    {"op": "affine", "scale": NAME, "shift": NAME}     x <- x * scale + shift for each feature: a batch normalisation
  5 {"op": "affine", "scale": NAME, "shift": null}     x <- x * scale
    {"op": "identity"}                                 x <- x
    {"op": "relu"}                                     x <- max(x, 0)
    {"op": "leaky_relu"}                               x <- x where x > 0, 0.01 x elsewhere
    {"op": "gelu"}                                     x <- x (1 + erf(x / sqrt(2))) / 2: exact, not by tanh
    {"op": "tanh"}                                     x <- tanh(x)
    {"op": "hardtanh"}                                 x <- min(max(x, -1), 1)
  4 {"op": "conv1d" or "conv2d", "shape": [O, C/G, k...], ..., "stride": [s...], "padding": [before..., after...],
     "dilation": [d...], "groups": G}                  x <- q(x) convolved with W, + bias for each of O channels
  4 {"op": "max_pool", "kernel": [k...], "stride": [s...]}
                                                       x <- the largest number of each window
  4 {"op": "average_pool", "kernel": [k...], "stride": [s...]}
                                                       x <- the mean of each window
  4 {"op": "global_average"}                           x <- the mean of each channel, (B, C, 1...)
  4 {"op": "flatten"}                                  x <- x as rows (B, I)
  4 {"op": "unflatten", "shape": [C, H, W] or [C, L]}  x <- rows as images or signals, channel by channel, row by row
  4 {"op": "average", "image": [C, H, W], "size": [h, w]}
                                                       x <- images of fewer pixels, see below

Tensors named by "step", "input_step", "bias", "scale" and "shift" are float32 in versions 1 to 4. In version 5 they
may be of other types. float16 are the numbers themselves. A uint8 n is 2^(n - 128). int8 of the shape (1 + O,) are an
exponent e and then O whole numbers, each of which stands for itself times 2^e. All become float32, exactly, before
anything is computed. "scale" may be (1,), one number for all features.

"average" makes C images of h x w pixels of C images of H x W, h <= H and w <= W, which lie row by row. A new pixel is
the mean of the pixels under it, weighted by the areas that they share. With H = 5 and h = 2, rows 0 and 1 and half of
row 2 lie under new row 0. Along a side, old pixel j and new pixel i share
max(0, min((i+1) H, (j+1) h) - max(i H, j h)) / g, where g is the greatest common divisor of H and h. These are whole
numbers that add up to H / g for each i. So the weighted sum S of the pixels is a whole number, and so is T, the
product of H / g and its like for the other side. The new pixel is the whole part of (2 S + T) / (2 T): the mean,
rounded to the nearest whole number, halves up.

A convolution has the keys of "linear" besides its own, and W its rows in the order (O, C/G, k...). Its result at
place p of channel o is the sum of W[o, c, j] * q(x)[c, p s + j d - before] over the places j of the kernel and the
channels c of the group of o, where q(x) is 0 beyond its ends. These zeros add nothing, also where no code is 0. k, s,
d and the two paddings have a number for each axis after the channels. A window of a pool is not padded, and what is
left over at an end is dropped. Means are sums of doubles, rounded to float32 once. "affine" has a number for each
channel.

With b = 1..16, W is stored as O * I codes of b bits, row by row, in one stream of bits. Code k takes the bits from
k*b to k*b + b - 1, its lowest bit first; bit n of the stream is bit n mod 8 of byte n div 8, where bit 0 is worth 1.
What is left of the last byte is zero. Read as an unsigned number u, a code stands for step * (u - Q), where
Q = 2^(b-1) - 1, and Q = 2^(b-1) where levels is "full"; with b = 1 for step * (2u - 1). Where levels is "ternary"
and b = 2, five codes are a byte, u0 + 3 u1 + 9 u2 + 27 u3 + 81 u4, the first code first; those that are missing in
the last byte are zero. step is one number, or (O, 1), one for each row. With b = 32, W is float32.

q(x) is x where a is null; else, with s for input_step, s * min(max(round(x / s), -Q), Q) with Q = 2^(a-1) - 1, halves
rounded to the even neighbour, and with a = 1 it is s where x >= 0 and -s elsewhere. Where input_levels is "unsigned",
it is s * min(max(round(x / s), 0), 2^a - 1) for any a. (Version 1 has neither levels nor input_levels: "symmetric".)

If inputs and weights both have codes, q(x) W^T is the sum of the products of their codes, times (s * step). The sum
is a whole number and thus the same in any order. It is exact; then it is rounded to float32 and multiplied in
float32.

Where "model" is neither "mlp" nor "cnn", it names the function of a user's that builds the network. If this is a
sequence of layers that are operations above, "complete" is true, as for "cnn". Otherwise `ops` only say how tensors
are stored. Entry "between" beside "ops" maps the path of each layer that is split to the activation between its
factors: `{"hidden": "relu"}` for tensors `hidden.factors.0.weight` and on. `load_into` reads all of it into a module.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from qdtune.datasets.dataset import DTYPES, Averaging
from qdtune.model.chain import Chain
from qdtune.model.dropout import is_dropout
from qdtune.model.layers.kind import Op
from qdtune.model.layers.known import kind_of, kind_of_op
from qdtune.model.quantize import saved_buffers
from qdtune.model.signed_file import TRIAL, sign_file, split_file
from qdtune.reader import (
    AVERAGE,
    INPUT,
    INPUT_VERSION,
    LATEST_VERSION,
    MODEL,
    NUMBERS,
    OVERHEAD_VERSION,
    PACKED,
    VERSION,
)


class RowFormat(NamedTuple):
    """The rows of a data set, and how they become inputs.

    Attributes:
        dtype: of the rows, one of `DTYPES`.
        scale, shift: (1,) or (I,); rows that are not uint8 are normalised as x * scale + shift. None: as they are.
        averaging: of rows that are images; None: as they are.
    """

    dtype: str = DTYPES[0]
    scale: Tensor | None = None
    shift: Tensor | None = None
    averaging: Averaging | None = None


PIXEL_ROWS = RowFormat()
OWN_NAMES = ("mlp", "cnn")  # models whose layers run in the order of their modules


def pack_replicas(
    replicas: Mapping[int, nn.Module],
    trial_id: str,
    inputs: int,
    outputs: int,
    model: str = "mlp",
    rows: RowFormat = PIXEL_ROWS,
) -> bytes:
    """The replicas of one configuration as one safetensors file with its checksum.

    Args:
        replicas: seed -> a trained model, at least one; of each the numbers that evaluation uses.
        trial_id: of the trial that trained them; a file under another name is seen by it.
        inputs, outputs: I of the first layer, O of the last.
        model: one of `OWN_NAMES`, or the factory of another one.
        rows: of the data.
    """
    tensors: dict[str, Tensor] = {}
    for seed, replica in replicas.items():
        ops, own = operations(replica)
        if rows.scale is not None and rows.shift is not None:
            ops.insert(0, {"op": "affine", "scale": "input.scale", "shift": "input.shift"})
            own |= {"input.scale": rows.scale.cpu().clone(), "input.shift": rows.shift.cpu().clone()}
        tensors |= {f"{seed}/{name}": tensor.contiguous() for name, tensor in own.items()}
    program: dict[str, Any] = {"model": model, "inputs": inputs, "outputs": outputs}
    version = max(VERSION, *(kind_of_op(op["op"]).version for op in ops))
    if model in OWN_NAMES:
        program |= {"complete": True} if model != "mlp" else {}
    else:
        first = next(iter(replicas.values()))
        program["between"] = name_activations(first)
        if runs_in_order(first):
            program["complete"], version = True, LATEST_VERSION
        else:  # their order, and what is between layers, is known to its forward pass alone
            ops = [op for op in ops if kind_of_op(op["op"]).has_tensors]
    if rows.averaging is not None:
        ops.insert(0, {"op": AVERAGE, "image": list(rows.averaging.image), "size": list(rows.averaging.size)})
        version = LATEST_VERSION
    if rows.dtype != DTYPES[0]:
        program[INPUT], version = rows.dtype, max(version, INPUT_VERSION)
    if _has_short_numbers(ops, tensors) or any(op["op"] == "affine" and op["shift"] is None for op in ops):
        version = OVERHEAD_VERSION
    metadata = {PACKED: version, MODEL: json.dumps(program | {"ops": ops}), TRIAL: trial_id}
    return sign_file(*split_file(safetensors.torch.save(tensors, metadata=metadata)))


def _has_short_numbers(ops: list[Op], tensors: Mapping[str, Tensor]) -> bool:
    """Whether some numbers that are no weights are not float32; `tensors` are those of all seeds."""
    names = {op[key] for op in ops for key in NUMBERS if op.get(key) is not None}
    return any(name.partition("/")[2] in names and t.dtype != torch.float32 for name, t in tensors.items())


def runs_in_order(model: nn.Module) -> bool:
    """Whether the forward pass of a model is its operations one after the other: `nn.Sequential` of known layers."""
    axes: int | None = 0
    for layer in _list_in_order(model):
        kind = kind_of(layer)
        if kind is None or axes is None:
            return False
        axes = kind.axes_after(layer, axes)
    return axes is not None


def _list_in_order(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a sequence as they run, and as it is what is neither a layer of a known kind nor a sequence."""
    if isinstance(module, Chain):
        yield from (inner for _, inner in _list_chain(module))
    elif type(module) is nn.Sequential and not (module._forward_hooks or module._forward_pre_hooks):
        for inner in module:
            yield from _list_in_order(inner)
    elif not is_dropout(module):
        yield module


def _list_chain(chain: Chain) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a chain as they run, each with its path in it."""
    for k, factor in enumerate(chain.factors):
        yield f"factors.{k}", factor
        if factor is not chain.factors[-1]:
            for norm in chain.norms[k : k + 1]:
                yield f"norms.{k}", norm
            yield "activation", chain.activation


def name_activations(model: nn.Module) -> dict[str, str]:
    """The path of each layer that is split into more than one factor, and the activation between its factors."""
    chains = {path: module for path, module in model.named_modules() if isinstance(module, Chain)}
    return {
        path: next(_visit("", chain.activation, {}))["op"] for path, chain in chains.items() if len(chain.factors) > 1
    }


@torch.no_grad()
def operations(model: nn.Module) -> tuple[list[Op], dict[str, Tensor]]:
    """What a model does, module by module, and the tensors it takes: the bytes that `quantize.count_sizes` counts."""
    model.eval()
    tensors: dict[str, Tensor] = {}
    return list(_visit("", model, tensors)), tensors


def _visit(name: str, module: nn.Module, tensors: dict[str, Tensor]) -> Iterator[Op]:
    """The operations of the module called `name` and of those in it; their tensors are put into `tensors`."""
    prefix, kind = f"{name}." if name else "", kind_of(module)
    if kind is not None:
        op, own = kind.pack(module, prefix)
        tensors |= own
        yield op
    elif isinstance(module, Chain):
        for path, inner in _list_chain(module):
            yield from _visit(f"{prefix}{path}", inner, tensors)
    else:
        kept = dict(module.named_parameters(recurse=False)) | saved_buffers(module)
        tensors |= {f"{prefix}{name}": tensor for name, tensor in kept.items()}
        for child, part in module._modules.items():  # an activation that is in two places runs twice
            if part is not None:
                yield from _visit(f"{prefix}{child}", part, tensors)
