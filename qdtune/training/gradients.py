"""Operations of K stacked replicas with gradients written by hand, for steps that are not compiled.

Under `vmap`, PyTorch gives each operation on images a layout of its own. It pools images whose channels come before
their pixels one number at a time, and scales and shifts normalised ones in passes of their own. Here the channels of
all replicas lie side by side, as the last axis in memory, from the first convolution to the last. So all replicas are
one call of the library, and its kernels go along these channels. Fake quantisation takes half the passes.

Alphabet: K replicas, B batch, C channels, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qdtune.model.quantizer import Grid, round_to_codes

aten = torch.ops.aten
Pair = Sequence[int]


class Kernel(NamedTuple):
    """An operation of the library on images and on what belongs to their channels.

    Attributes:
        run: takes the number of groups of channels, and tensors; returns tensors.
        given, made: of each of these tensors, the axis of the channels: 1 in images (B, C, ...), 0 in weights
            (O, ...) and vectors (C,).
    """

    run: Callable[..., tuple[Tensor, ...]]
    given: tuple[int, ...]
    made: tuple[int, ...]


class NoDerivativeError(RuntimeError):
    """A derivative of a gradient is asked for, as networks need that use their own gradients."""


class Merged(torch.autograd.Function):
    """One call of a kernel, which under `vmap` takes the tensors of all replicas at once. It has no gradient."""

    @staticmethod
    def forward(kernel: Kernel, groups: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        images = (t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors)
        return kernel.run(groups, *images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        raise NoDerivativeError("gradients written by hand have no derivatives")

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], kernel: Kernel, groups: int, *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        count = info.batch_size
        merged = []
        for tensor, dim, axis in zip(tensors, in_dims[2:], kernel.given, strict=True):
            stack = tensor.expand(count, *tensor.shape) if dim is None else tensor.movedim(dim, 0)  # (K, ...)
            merged.append(stack.movedim(0, axis).flatten(axis, axis + 1))
        made = Merged.apply(kernel, groups * count, *merged)
        parts = (t.unflatten(axis, (count, -1)).movedim(axis, 0) for t, axis in zip(made, kernel.made, strict=True))
        return tuple(parts), (0,) * len(made)


class Convolution(torch.autograd.Function):
    """`F.conv2d` without a bias, of images (B, C, ...) and a weight (O, C / groups, ...)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, window: tuple[Pair, Pair, Pair], groups: int) -> Tensor:
        def run(groups: int, x: Tensor, weight: Tensor) -> tuple[Tensor]:
            return (torch.convolution(x, weight, None, *window, False, [0, 0], groups),)

        made: tuple[Tensor] = Merged.apply(Kernel(run, (1, 0), (1,)), groups, x, weight)
        return made[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, ctx.window, ctx.groups = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        def run(groups: int, *tensors: Tensor, of: int) -> tuple[Tensor]:
            settings = (None, *ctx.window, False, [0, 0], groups, [of == 0, of == 1, False])
            return (aten.convolution_backward(*tensors, *settings)[of],)

        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            kernel = Kernel(partial(run, of=0), (1, 1, 0), (1,))
            (of_x,) = Merged.apply(kernel, ctx.groups, slope, *ctx.saved_tensors)
        if ctx.needs_input_grad[1]:
            kernel = Kernel(partial(run, of=1), (1, 1, 0), (0,))
            (of_weight,) = Merged.apply(kernel, ctx.groups, slope, *ctx.saved_tensors)
        return of_x, of_weight, None, None


class Largest(torch.autograd.Function):
    """`F.max_pool2d` of images (B, C, ...), with the places of the largest numbers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, window: tuple[Pair, Pair, Pair, Pair]) -> tuple[Tensor, Tensor]:
        def run(_: int, x: Tensor) -> tuple[Tensor, Tensor]:
            return aten.max_pool2d_with_indices(x, *window)

        made: tuple[Tensor, Tensor] = Merged.apply(Kernel(run, (1,), (1, 1)), 1, x)
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.window = inputs
        ctx.save_for_backward(x, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Any) -> tuple[Tensor, None]:
        def run(_: int, slope: Tensor, x: Tensor, places: Tensor) -> tuple[Tensor]:
            return (aten.max_pool2d_with_indices_backward(slope, x, *ctx.window, False, places),)

        (of_x,) = Merged.apply(Kernel(run, (1, 1, 1), (1,)), 1, slope, *ctx.saved_tensors)
        return of_x, None


class Normalised(torch.autograd.Function):
    """`F.batch_norm` of images (B, C, ...) in training; the new running mean and variance, and two vectors more."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, momentum: float, eps: float
    ) -> tuple[Tensor, ...]:
        def run(_: int, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, ...]:
            mean, var = mean.clone(), var.clone()  # the kernel changes them
            made = aten.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
            return made[0], mean, var, made[1], made[2]

        kernel = Kernel(run, (1, 0, 0, 0, 0), (1, 0, 0, 0, 0))
        made: tuple[Tensor, ...] = Merged.apply(kernel, 1, x, weight, bias, mean, variance)
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.eps = inputs[-1]

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        def run(_: int, *tensors: Tensor) -> tuple[Tensor, ...]:
            made: tuple[Tensor, ...] = aten.native_batch_norm_backward(*tensors, True, ctx.eps, [True] * 3)
            return made

        kernel = Kernel(run, (1, 1, 0, 0, 0, 0, 0), (1, 0, 0))
        return (*Merged.apply(kernel, 1, slope, *ctx.saved_tensors), *[None] * 4)


class StraightThrough(torch.autograd.Function):
    """Code times step size, with the gradients of the tensor and of the step size (Esser et al. 2020, eq. 3).

    An infinite number becomes the outermost value, of which `quantizer.fake_quantize` makes no number.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, step: Tensor, low: Tensor, high: Tensor, binary: Tensor) -> Tensor:
        return round_to_codes(x, step, Grid(low, high, binary)) * step

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, step, low, high, _, values = ctx.saved_tensors
        inside = slope * ((x >= low * step) & (x <= high * step))
        if not ctx.needs_input_grad[1]:
            return inside, None, None, None, None
        of_step = (slope * values - inside * x) / step
        axes = [0, *range(2, x.ndim)] if step.ndim == 0 else [1]
        sums = of_step.sum(axes, keepdim=step.ndim > 0)  # of each channel first, along rows of memory
        return inside, sums if step.ndim else sums.sum(), None, None, None
