"""Quantises one tensor: grids of codes, step sizes, fake quantisation and its gradient.

A value is its code times the step size. `Grid` holds the codes that exist. `round_to_codes` gives the codes,
`fake_quantize` gives the values with a gradient.
Sources: the notebook's `SymQuantSTE`; `scale_mix` names those of the rules.

The straight-through estimator uses `detach`. As a `torch.autograd.Function`, its gradients are silently zero under
`torch.compile(vmap(grad))`. Bits and rule enter the arithmetic as tensors, so one compiled training step serves every
bit width, and all rules but `lsq`, which needs less arithmetic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from qdtune.model.overhead import FLOAT32, SMALLEST_HALF, round_factor
from qdtune.reader import GRIDS
from qdtune.spec.axes import SCALE

SMALLEST_STEP = 1e-8
OBSERVER_MOMENTUM = 0.01  # of the running step of activations


class Grid(NamedTuple):
    """The codes of 1..16 bits: all whole numbers from `low` to `high`, or only these two if `binary`; 0-dim tensors.

    `symmetric` and `ternary` levels are -Q..Q with Q = 2^(b-1) - 1, so one pattern of b bits stays unused. `full`
    levels use all 2^b patterns: -Q - 1..Q, the signed grid of Esser et al. 2020 (section 2). The levels of one bit
    are -1 and 1. `unsigned` levels are 0..2^b - 1, for inputs that are never negative.

    A grid of halves (±1/2, ±3/2, ...) has 2^b values and no zero. Compared with `full` at 2 bits, it was equal at
    depths 1 and 4, 0.6 points better at depth 2, and 3 points worse without batch normalisation (measured, MNIST,
    784-24-10, 3 seeds).
    """

    low: Tensor
    high: Tensor
    binary: Tensor


def scale_mix(bits: int, levels: str, scale: str) -> tuple[float, float, float]:
    """The factors of max - min, of mean |x| and of the learned step; their sum is the step size.

    `minmax` puts the outermost codes on the extremes: (max - min) / 2Q, as the notebook does; mean |x| at one bit.
    Of a range that does not hold zero, or has one value, it is max |x| / Q.
    `absmean` is mean |x| / sqrt(Q). This is mean |x| at one bit (XNOR-Net, Rastegari et al. 2016, section 3.1) and
    for three levels (BitNet b1.58, Ma et al. 2024, section 2). At more bits it is half the initial step of LSQ.
    Among steps from 0.2 to 1.3 mean |x|, it was at or near the best at 3, 4 and 8 bits and depths 1 to 3 (measured,
    MNIST, 3 seeds). `lsq` learns the step (Esser et al. 2020, section 2), see `Quantizer.start`.

    Raises:
        ValueError: an unknown rule.
    """
    low, high, binary = GRIDS[bits, levels]
    if scale == "lsq":
        return (0.0, 0.0, 1.0)
    if scale == "minmax":
        return (0.0, 1.0, 0.0) if binary else (1 / (high - low), 0.0, 0.0)
    if scale == "absmean":
        return (0.0, 1 / math.sqrt(high), 0.0)
    raise ValueError(f"scale must be one of {', '.join(SCALE.names)}, got {scale!r}")


def round_to_codes(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """The codes of x: whole numbers, as floats. Code times `step` approximates x.

    Args:
        x: any shape.
        step: step size > 0, 0-dim, or one per row (O, 1).
        grid: a zero gets the positive code of a binary grid, because there is no code 0.
    """
    found = torch.clamp(torch.round(x / step), grid.low, grid.high)
    return torch.where(grid.binary, torch.where(x >= 0, 1.0, -1.0), found)


def fake_quantize(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """codes * step, with the straight-through gradient: 1 between the lowest and highest value of the grid, else 0.

    A `step` that requires a gradient gets the gradient of learned step sizes (Esser et al. 2020, eq. 3).
    """
    if has_torch_function((x, step)):  # such as a step that is not compiled, see `training.fast_forms`
        return handle_torch_function(fake_quantize, (x, step), x, step, grid)
    v = x / step
    v = torch.where((x >= grid.low * step) & (x <= grid.high * step), v, v.detach())
    return (v + (round_to_codes(x, step, grid) - v).detach()) * step


class Quantizer(nn.Module):
    """Fake-quantises one tensor.

    Args:
        bits: 1..16.
        scale: a name of `axes.SCALE`.
        levels: a name of `axes.LEVELS`.
        rows: the number of rows of x (O, I) if each has its own step size; None if all of x has one.
        observe: for activations. In training, the rule applies to each batch, as in the notebook. Evaluation and
            export use a running mean of the step sizes, so a prediction does not depend on its batch. Calibration
            (`start`) decides whether the activations can be negative.

    Attributes:
        overhead: how the step size is stored, a name of `axes.OVERHEAD`.
    """

    overhead = FLOAT32
    low: Tensor
    high: Tensor
    binary: Tensor
    mix: Tensor
    running: Tensor

    def __init__(
        self, bits: int, scale: str, levels: str = "symmetric", rows: int | None = None, observe: bool = False
    ) -> None:
        super().__init__()
        self.bits, self.scale, self.rows, self.observe = bits, scale, rows, observe
        self.signed: bool | None = None  # whether activations can be negative; None: the first tensor decides
        self.step = nn.Parameter(torch.ones(() if rows is None else (rows, 1)))  # only lsq trains it
        self._set_levels(levels)
        if observe:
            self.register_buffer("running", torch.ones(()))

    def _set_levels(self, levels: str) -> None:
        """Sets the levels. They are tensors, because a compiled step takes them as data."""
        self.levels = levels
        low, high, binary = GRIDS[self.bits, levels]
        mix = scale_mix(self.bits, levels, self.scale)
        for name, number in {"low": float(low), "high": float(high), "binary": binary, "mix": mix}.items():
            self.register_buffer(name, torch.tensor(number, device=self.step.device))

    def set_sign(self, signed: bool) -> None:
        """Decides whether activations can be negative, as calibration does."""
        self.signed = signed
        self._set_levels("symmetric" if signed else "unsigned")

    @property
    def grid(self) -> Grid:
        """The codes that exist."""
        return Grid(self.low, self.high, self.binary)

    def _mean_magnitude(self, x: Tensor) -> Tensor:
        return x.abs().mean() if self.rows is None else x.abs().mean(-1, keepdim=True)

    def step_size(self, x: Tensor) -> Tensor:
        """The step size of x by the rule, as it is stored: 0-dim or (O, 1), > 0."""
        return self._stored(self._exact_step(x))

    def _stored(self, step: Tensor) -> Tensor:
        if self.overhead == FLOAT32:
            return step
        return round_factor(step.clamp_min(SMALLEST_HALF), self.overhead)

    def _exact_step(self, x: Tensor) -> Tensor:
        """The step size of x by the rule, before it is rounded."""
        if self.scale == "lsq":
            return self._learned_step(x).clamp_min(SMALLEST_STEP)
        fixed = x.detach()
        low, high = torch.aminmax(fixed) if self.rows is None else torch.aminmax(fixed, dim=-1, keepdim=True)
        # A range without zero, or of one value: its largest magnitude gets the outermost code. max - min, which is 0
        # for one value, would put every value of it beyond the last code.
        beside = (low > 0) | (high < 0) | (low == high)
        reach = torch.maximum(-low, high) * ((self.high - self.low) / self.high)
        spread, mean = torch.where(beside, reach, high - low), self._mean_magnitude(fixed)
        return (self.mix[0] * spread + self.mix[1] * mean).clamp_min(SMALLEST_STEP)

    def _learned_step(self, x: Tensor) -> Tensor:
        """The learned step size.

        Its gradient is divided by sqrt(N * Q). N is the number of weights that share it, or of features of one sample
        (Esser et al. 2020, section 2.2).
        """
        count = x.numel() if self.rows is None and not self.observe else x[0].numel()
        damping = 1 / (math.sqrt(count) * self.high.sqrt())
        learned = self.step.abs() * damping
        return learned + (self.step.abs() - learned).detach()

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets the learned and the running step, and for activations the sign, from a first tensor.

        The levels start 2 mean |x| / sqrt(Q) apart (Esser et al. 2020, section 2.1), which at one bit is XNOR-Net's
        mean |x|. Activations that are never negative, such as those after a ReLU, get the codes 0..2^b - 1 (section
        2: Qn = 0). The data decides this, because only the forward pass of a user's model knows which module follows
        which. This is as accurate as the sign after a batch normalisation without ReLU (Hubara et al. 2016): 94.6
        and 94.6 % at one bit, 96.9 and 96.8 % at two (measured, MNIST, 784-64-64-64-10, 1-bit weights, 3 seeds).
        """
        if self.observe:
            signed = bool((x < 0).any()) if self.signed is None else self.signed
            self._set_levels("symmetric" if signed else "unsigned")
        mean = self._mean_magnitude(x)
        # A step learned from zero would stay there: its weights would lie beyond the grid, where gradients end. So
        # the step of zeros is that of a mean of 1; of a dead channel, that of the others.
        others = mean.sum() / (mean > 0).sum().clamp_min(1)
        mean = torch.where(mean > 0, mean, torch.where(others > 0, others, 1.0))
        apart = 2 * mean / self.high.sqrt()
        # Half a step rounds to zero. With codes -1, 0, 1, all values of one magnitude would.
        peak = x.abs().amax() if self.rows is None else x.abs().amax(-1, keepdim=True)
        apart = torch.where((apart >= 2 * peak) & (peak > 0), peak, apart)
        self.step.copy_(torch.where(self.binary, apart / 2, apart).clamp_min(SMALLEST_STEP))
        if self.observe:
            self.running.copy_(self._exact_step(x))

    def current_step(self, x: Tensor) -> Tensor:
        """The step size used for x: the running one for an activation in evaluation, else that of the rule."""
        if not self.observe:
            return self.step_size(x)
        if not self.training:
            learned = self.mix[2]
            return self._stored((learned * self.step.abs() + (1 - learned) * self.running).clamp_min(SMALLEST_STEP))
        step = self._exact_step(x)
        self.running.copy_(self.running + OBSERVER_MOMENTUM * (step.detach() - self.running))
        return self._stored(step)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.current_step(x), self.grid)

    def linearise(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x, which needs no gradient, fake-quantised as a linear function of the step size.

        Returns:
            The values; their slopes in the step size; and the change of the step size, which is 0 and has a gradient.
        """
        step = self.current_step(x)
        fixed = step.detach()
        codes = round_to_codes(x, fixed, self.grid)
        inside = (x >= self.low * fixed) & (x <= self.high * fixed)
        return codes * fixed, codes - torch.where(inside, x / fixed, 0.0), step - fixed
