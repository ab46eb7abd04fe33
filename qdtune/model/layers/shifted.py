"""Convolutions in which each output channel sees one input channel, as sums of shifted inputs.

Those are depthwise convolutions and the first layer of a network for grey images. They multiply little, so what they
cost is memory that is read and written. A compiler fuses a sum of shifted inputs with the operations around it, such
as quantisers and activations, and it cannot fuse a call of a library. A compiled step of five replicas of 8 channels
takes half the time (`tests/benchmarks/cnn.py`). Without a compiler the library is faster, so `sums_of_shifts` holds
only while a step is traced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdtune.model.layers.conv import pad_sides

PLAIN = (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward)
MOST_TAPS = 25  # of a 5x5 kernel: each is written out in the compiled code


class Window(NamedTuple):
    """How a kernel slides; one number for each axis.

    Attributes:
        stride, dilation: as of `nn.Conv2d`.
        before, after: zeros beside the input; less than 0 cuts it.
    """

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def _list_shifts(x: Tensor, kernel: tuple[int, ...], window: Window) -> list[Tensor]:
    """For each place of a kernel, in the order of its weights, the inputs (B, C, ...) that it meets."""
    sides = zip(reversed(window.before), reversed(window.after), strict=True)
    padded = F.pad(x, [zeros for both in sides for zeros in both])
    shifts = []
    for place in product(*map(range, kernel)):
        part = padded
        for axis, at in enumerate(place):
            step, side = window.dilation[axis], padded.shape[axis + 2]
            end = side - step * (kernel[axis] - 1 - at)
            part = part[(slice(None),) * (axis + 2) + (slice(at * step, end, window.stride[axis]),)]
        shifts.append(part)
    return shifts


def _sum_shifts(x: Tensor, weight: Tensor, window: Window) -> Tensor:
    """The convolution of x (B, C, ...), or (B, 1, ...), with the kernels (C, 1, ...) of its channels."""
    kernel = tuple(weight.shape[2:])
    taps = weight.flatten(1).unbind(1)
    after = [1] * len(kernel)
    terms = [part * tap.view(-1, *after) for part, tap in zip(_list_shifts(x, kernel, window), taps, strict=True)]
    return sum(terms[1:], terms[0])


class ShiftedSum(torch.autograd.Function):
    """The sum of shifted inputs (B, C, ...) times the taps of a weight (O, 1, ...); C is O or 1.

    Its gradients are such sums, too. Those that autograd would find are sums of padded tensors, a quarter slower.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, window: Window) -> Tensor:
        return _sum_shifts(x, weight, window)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Window], output: Tensor) -> None:
        x, weight, ctx.window = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        window, kernel = ctx.window, tuple(weight.shape[2:])
        axes = [0, *range(2, x.ndim)]
        taps = torch.stack([(part * slope).sum(axes) for part in _list_shifts(x, kernel, window)], 1)
        spread = _spread(slope, window.stride)
        reach = [d * (k - 1) for k, d in zip(kernel, window.dilation, strict=True)]
        before = [far - zeros for far, zeros in zip(reach, window.before, strict=True)]
        sides = zip(x.shape[2:], spread.shape[2:], before, reach, strict=True)
        after = [side - had - zeros + far for side, had, zeros, far in sides]
        back = Window((1,) * len(kernel), window.dilation, tuple(before), tuple(after))
        of_x = _sum_shifts(spread, weight.flip(*range(2, weight.ndim)), back)
        if x.shape[1] != of_x.shape[1]:
            of_x = of_x.sum(1, keepdim=True)
        return of_x, taps.view(weight.shape), None


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """x (B, C, ...) with `stride` - 1 zeros between its numbers."""
    for axis, step in enumerate(stride, start=2):
        if step > 1:
            side = (x.shape[axis] - 1) * step + 1
            rows = x.unsqueeze(axis + 1)
            zeros = [0] * (2 * (x.ndim - axis - 1))
            x = F.pad(rows, [*zeros, 0, step - 1]).flatten(axis, axis + 1).narrow(axis, 0, side)
    return x


def _convolve(window: Window, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = ShiftedSum.apply(x, weight, window)
    return made if bias is None else made + bias.view(-1, *[1] * (x.ndim - 2))


def _is_shifted(conv: Any) -> bool:
    if type(conv)._conv_forward not in PLAIN:  # a user's subclass may compute something else
        return False
    sees_one = conv.weight.shape[1] == 1 and conv.in_channels in (1, conv.out_channels)
    return sees_one and conv.padding_mode == "zeros" and conv.weight[0].numel() <= MOST_TAPS


@contextmanager
def sums_of_shifts(model: nn.Module) -> Iterator[None]:
    """The convolutions of a model in which each output channel sees one input channel sum shifted inputs."""
    changed = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d) and _is_shifted(m)]
    for conv in changed:
        window = Window(tuple(conv.stride), tuple(conv.dilation), *map(tuple, pad_sides(conv)))
        conv._conv_forward = partial(_convolve, window)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in changed:
            del conv._conv_forward
