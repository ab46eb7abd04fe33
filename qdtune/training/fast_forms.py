"""What a step calls, in the forms that are the fastest if it is not compiled, on a CPU.

A convolution with what surrounds it takes half to three quarters of the time (`tests/benchmarks/conv.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from qdtune.model import quantizer
from qdtune.model.layers.pooling import each_axis
from qdtune.training.gradients import Convolution, Largest, NoDerivativeError, Normalised, StraightThrough


def _as_images(x: Tensor, axes: int, *settings: tuple[Any, int]) -> tuple[Tensor, list[list[int]]] | None:
    """Images, or signals (B, C, L) as images of one row, and settings of a window for both axes.

    Args:
        x: the tensor.
        axes: over how many a window slides.
        settings: each with what it is for an axis of length 1.

    Returns:
        None if PyTorch's own function must be called.
    """
    is_known = x.ndim == axes + 2 and x.device.type == "cpu" and x.is_floating_point() and x.numel() > 0
    if not is_known or torch.is_autocast_enabled("cpu") or any(isinstance(one, str) for one, _ in settings):
        return None
    each = [[none] * (2 - axes) + each_axis(setting, axes) for setting, none in settings]
    return x.unsqueeze(2) if axes == 1 else x, each


def convolve(
    library: Callable[..., Tensor],
    axes: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`F.conv1d` and `F.conv2d`, which are `library`, over 1 and 2 axes."""
    found = _as_images(input, axes, (stride, 1), (padding, 0), (dilation, 1))
    if found is None or (bias is not None and bias.shape != weight.shape[:1]):
        return library(input, weight, bias, stride, padding, dilation, groups)
    images, window = found
    made: Tensor = Convolution.apply(images, weight.unsqueeze(2) if axes == 1 else weight, window, groups)
    made = made.squeeze(2) if axes == 1 else made
    return made if bias is None else made + bias.view(-1, *[1] * axes)


def pool_largest(
    library: Callable[..., Any],
    axes: int,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """`F.max_pool1d` and `F.max_pool2d`, which are `library`, over 1 and 2 axes."""
    if stride is None or stride in ([], ()):
        stride = kernel_size
    found = _as_images(input, axes, (kernel_size, 1), (stride, 1), (padding, 0), (dilation, 1))
    if found is None or ceil_mode or return_indices or stride == 0:
        return library(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    images, window = found
    made: Tensor = Largest.apply(images, window)[0]
    return made.squeeze(2) if axes == 1 else made


def normalise_batch(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm`."""
    axes = input.ndim - 2
    found = _as_images(input, axes) if axes in (1, 2) and input.numel() > input.shape[1] else None
    if found is None or not training or running_mean is None or running_var is None or weight is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    shift = torch.zeros_like(weight) if bias is None else bias
    made, mean, variance, *_ = Normalised.apply(found[0], weight, shift, running_mean, running_var, momentum, eps)
    running_mean.copy_(mean)
    running_var.copy_(variance)
    return made.squeeze(2) if axes == 1 else made


def average(input: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool2d`: as the library, but for the layout of the result, which `vmap` cannot set."""
    is_one = _as_images(input, 2) is not None and each_axis(output_size, 2) == [1, 1]
    return input.mean((2, 3), keepdim=True) if is_one else F.adaptive_avg_pool2d(input, output_size)


def fake_quantize(x: Tensor, step: Tensor, grid: quantizer.Grid) -> Tensor:
    """`quantizer.fake_quantize`."""
    made: Tensor = StraightThrough.apply(x, step, *grid)
    return made


FORMS: dict[Any, Callable[..., Any]] = {
    F.conv1d: partial(convolve, F.conv1d, 1),
    F.conv2d: partial(convolve, F.conv2d, 2),
    F.max_pool1d: partial(pool_largest, F.max_pool1d, 1),
    F.max_pool2d: partial(pool_largest, F.max_pool2d, 2),
    F.batch_norm: normalise_batch,
    F.adaptive_avg_pool2d: average,
    quantizer.fake_quantize: fake_quantize,
}


class FastForms(TorchFunctionMode):
    """While it is on, each function of `FORMS` runs in its other form, in users' own networks, too."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        form: Any = FORMS.get(function, function)
        return form(*args, **(kwargs or {}))


def with_fast_forms(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the fast forms; without them if it asks for derivatives that they do not have.

    Args:
        function: changes nothing before it has all derivatives.
    """
    has_forms = True

    def run(*args: Any) -> Any:
        nonlocal has_forms
        if has_forms:
            try:
                with FastForms():
                    return function(*args)
            except (NoDerivativeError, NotImplementedError):  # the second is torch's, of forward-mode derivatives
                has_forms = False
        return function(*args)

    return run
