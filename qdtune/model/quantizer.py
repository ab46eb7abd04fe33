"""Few-bit numbers: the grids of codes, step sizes, fake quantisation of one tensor and its gradient.

A value is its code times the step size, and `Grid` says which codes there are. Codes are the truth; `fake_quantize`
is their view with a gradient.
Sources: the notebook's `SymQuantSTE`; for the rules see `scale_mix`.

The straight-through estimator is written with `detach`: as a `torch.autograd.Function` it gives gradients that are
silently zero under `torch.compile(vmap(grad))`. Bits and rule enter the arithmetic as tensors, so that one compiled
training step serves every bit width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdtune.reader import GRIDS
from qdtune.spec.axes import SCALE

SMALLEST_STEP = 1e-8
OBSERVER_MOMENTUM = 0.01  # of the running step of activations


class Grid(NamedTuple):
    """The codes of 1..16 bits, whole numbers from `low` to `high`, or where `binary` these two; as 0-dim tensors.

    `symmetric` and `ternary` levels are -Q..Q with Q = 2^(b-1) - 1, which leaves one pattern of b bits over. `full`
    ones are all 2^b: -Q - 1..Q, the signed grid of Esser et al. 2020 (section 2). One bit is -1 and 1. `unsigned`
    ones, for what is never negative, are 0..2^b - 1. (A grid of halves, ±1/2, ±3/2, ..., which has 2^b values and no
    zero, was at 2 bits no better than `full` at depths 1 and 4, 0.6 points better at depth 2, and 3 points worse
    without batch normalisation: measured, MNIST, 784-24-10, 3 seeds.)
    """

    low: Tensor
    high: Tensor
    binary: Tensor


def scale_mix(bits: int, levels: str, scale: str) -> tuple[float, float, float]:
    """What the step size is made of: factors for max - min, for mean |x| and for the learned step.

    `minmax` lays the outermost codes on the extremes, the notebook's (max - min) / 2Q; at one bit it is mean |x|.
    `absmean` is mean |x| / sqrt(Q): mean |x| at one bit (XNOR-Net, Rastegari et al. 2016, section 3.1) and for
    three levels (BitNet b1.58, Ma et al. 2024, section 2), and with more half of where LSQ starts. Of steps from 0.2
    to 1.3 mean |x| it was at or near the best at 3, 4 and 8 bits and depths 1 to 3 (measured, MNIST, 3 seeds).
    `lsq` learns the step (Esser et al. 2020, section 2), see `Quantizer.start`.

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


def codes(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """The whole numbers, as floats, whose product with `step` stands for x.

    Args:
        x: what is quantised, any shape.
        step: step size > 0, 0-dim, or one per row (O, 1).
        grid: where it is binary a zero counts as positive, since there is no third code.
    """
    found = torch.clamp(torch.round(x / step), grid.low, grid.high)
    return torch.where(grid.binary, torch.where(x >= 0, 1.0, -1.0), found)


def fake_quantize(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """codes * step, with the straight-through gradient: 1 from the lowest value of the grid to the highest, else 0.

    A `step` that requires a gradient gets that of learned step size quantisation (Esser et al. 2020, eq. 3).
    """
    v = x / step
    v = torch.where((x >= grid.low * step) & (x <= grid.high * step), v, v.detach())
    return (v + (codes(x, step, grid) - v).detach()) * step


class Quantizer(nn.Module):
    """Fake quantisation of one tensor.

    Args:
        bits: 1..16.
        scale: a name of `axes.SCALE`.
        levels: a name of `axes.LEVELS`.
        rows: how many step sizes there are, one for each row of x (O, I); None: one for all of x.
        observe: for activations. The rule is then applied batch by batch while training, as in the notebook, and
            a running mean of its steps serves evaluation and export, so that a prediction does not depend on
            the batch it is made in. Whether they can be negative is seen in calibration (`start`).
    """

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
        self.signed: bool | None = None  # whether activations can be negative; None: as the first tensor says
        self.step = nn.Parameter(torch.ones(() if rows is None else (rows, 1)))  # learned by lsq, idle otherwise
        self._lay(levels)
        if observe:
            self.register_buffer("running", torch.ones(()))

    def _lay(self, levels: str) -> None:
        """Takes these levels from now on; as tensors, for they are data of a compiled step."""
        self.levels = levels
        low, high, binary = GRIDS[self.bits, levels]
        mix = scale_mix(self.bits, levels, self.scale)
        for name, number in {"low": float(low), "high": float(high), "binary": binary, "mix": mix}.items():
            self.register_buffer(name, torch.tensor(number, device=self.step.device))

    @property
    def grid(self) -> Grid:
        """The codes it gives."""
        return Grid(self.low, self.high, self.binary)

    def _mean(self, x: Tensor) -> Tensor:
        return x.abs().mean() if self.rows is None else x.abs().mean(-1, keepdim=True)

    def step_size(self, x: Tensor) -> Tensor:
        """The step for x by this quantiser's rule, 0-dim or (O, 1), > 0."""
        fixed = x.detach()
        low, high = torch.aminmax(fixed) if self.rows is None else torch.aminmax(fixed, dim=-1, keepdim=True)
        spread, mean = high - low, self._mean(fixed)
        # The gradient of a learned step is scaled down by sqrt(N * Q), with N weights that share it, or features of
        # one sample: Esser et al. 2020, section 2.2.
        count = x.numel() if self.rows is None and not self.observe else x[0].numel()
        damping = 1 / (math.sqrt(count) * self.high.sqrt())
        learned = self.step.abs() * damping
        learned = learned + (self.step.abs() - learned).detach()
        step = self.mix[0] * spread + self.mix[1] * mean + self.mix[2] * learned
        return step.clamp_min(SMALLEST_STEP)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Takes the learned and the running step, and for activations the sign, from a first tensor.

        The levels start 2 mean |x| / sqrt(Q) apart (Esser et al. 2020, section 2.1), which at one bit is XNOR-Net's
        mean |x|. Activations that are never negative, as after a ReLU, get the codes 0..2^b - 1 (section 2: Qn = 0):
        where the data says so and not where a module stands, since an own model's order is in its forward pass alone.
        As accurate as the sign after a batch normalisation without ReLU (Hubara et al. 2016): 94.6 and 94.6 % at
        one bit, 96.9 and 96.8 % at two (measured, MNIST, 784-64-64-64-10, 1-bit weights, 3 seeds).
        """
        if self.observe:
            signed = bool((x < 0).any()) if self.signed is None else self.signed
            self._lay("symmetric" if signed else "unsigned")
        apart = 2 * self._mean(x) / self.high.sqrt()
        self.step.copy_(torch.where(self.binary, apart / 2, apart).clamp_min(SMALLEST_STEP))
        if self.observe:
            self.running.copy_(self.step_size(x))

    def current(self, x: Tensor) -> Tensor:
        """The step used for x now: the rule's, or for an activation in evaluation the running one."""
        if not self.observe:
            return self.step_size(x)
        if not self.training:
            learned = self.mix[2]
            return (learned * self.step.abs() + (1 - learned) * self.running).clamp_min(SMALLEST_STEP)
        step = self.step_size(x)
        self.running.copy_(self.running + OBSERVER_MOMENTUM * (step.detach() - self.running))
        return step

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.current(x), self.grid)
