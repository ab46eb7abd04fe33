"""Few-bit weights and activations: step size, integer codes, fake quantisation, and the bytes they ship as.

A value is its code times the step size, and `Grid` says which codes there are. Codes are the truth; `fake_quantize`
is their view with a gradient.
Sources: the notebook's `SymQuantSTE` and `SymQuantLinear`; for the rules see `scale_mix`.

The straight-through estimator is written with `detach`: as a `torch.autograd.Function` it gives gradients that are
silently zero under `torch.compile(vmap(grad))`. Bits and rule enter the arithmetic as tensors, so that one compiled
training step serves every bit width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdtune.decompose import swap
from qdtune.ledger import FLOAT_BITS, FLOAT_BYTES, Ledger, matrix_ledger, norm_ledger, other_ledger
from qdtune.names import GRANULARITIES, LEVELS, SCALES
from qdtune.reader import GRIDS

SMALLEST_STEP = 1e-8
OBSERVER_MOMENTUM = 0.01  # of the running step of activations


class Grid(NamedTuple):
    """The codes of 1..16 bits, whole numbers from `low` to `high`, or where `binary` these two; as 0-dim tensors.

    `symmetric` and `ternary` levels are -Q..Q with Q = 2^(b-1) - 1, which leaves one pattern of b bits over. `full`
    ones are all 2^b: -Q - 1..Q, the signed grid of Esser et al. 2020 (section 2). One bit is -1 and 1. `unsigned`
    ones, for what is never negative, are 0..2^b - 1.
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
    raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")


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
        scale: a name of `SCALES`.
        levels: a name of `LEVELS`.
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
        """
        if self.observe:
            self._lay("symmetric" if (x < 0).any() else "unsigned")
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


class QuantLinear(nn.Linear):
    """A linear layer whose weights, and where asked whose inputs, are fake-quantised in every forward pass.

    Takes over the weight and bias of `linear`; nothing is copied.

    Args:
        linear: the layer it replaces.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: 1..16, or None for float inputs.
        scale: a name of `SCALES`, for weights and inputs.
        levels: of the weights, a name of `LEVELS`.
        granularity: of the weights' step size: one for the `tensor`, or one for each output `channel`. Between the
            factors of a chain the latter is a scale vector, as Double Binary Factorization (arXiv 2505.11076) and
            LittleBit (arXiv 2506.13771) have it between their two sign matrices. They have one more for the inputs
            of the chain, and take all from a trained matrix; here a factor scales its outputs alone, at any depth
            and number of bits, and `lsq` trains the vector with the task's loss.

    Raises:
        ValueError: bits out of range or an unknown rule.
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_bits: int,
        act_bits: int | None,
        scale: str,
        levels: str = "symmetric",
        granularity: str = "tensor",
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        if weight_bits != FLOAT_BITS and not 1 <= weight_bits <= 16:
            raise ValueError(f"weight_bits must be 1 to 16, or 32 for float, got {weight_bits}")
        if act_bits is not None and not 1 <= act_bits <= 16:
            raise ValueError(f"act_bits must be 1 to 16, or None for float, got {act_bits}")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_bits, self.act_bits = weight_bits, act_bits
        self.weight_quantizer: Quantizer | None = None
        self.input_quantizer: Quantizer | None = None
        if weight_bits != FLOAT_BITS:
            rows = self.out_features if granularity == "channel" else None
            self.weight_quantizer = Quantizer(weight_bits, scale, levels, rows).to(self.weight.device)
            self.weight_quantizer.start(self.weight)
        if act_bits is not None:
            self.input_quantizer = Quantizer(act_bits, scale, observe=True).to(self.weight.device)

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        weight = self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)
        return F.linear(x, weight, self.bias)

    @torch.no_grad()
    def codes(self) -> tuple[Tensor, Tensor]:
        """The integer codes (O, I) of the weights and their step size, which are what gets shipped.

        Raises:
            ValueError: the weights of this layer are float.
        """
        quantizer = self.weight_quantizer
        if quantizer is None:
            raise ValueError("this layer's weights are float (weight_bits 32): they have no codes")
        step = quantizer.step_size(self.weight)
        return codes(self.weight, step, quantizer.grid).to(torch.int32), step


def quantize(
    model: nn.Module,
    weight_bits: int,
    act_bits: int | None = None,
    scale: str = "absmean",
    levels: str = "symmetric",
    granularity: str = "tensor",
) -> nn.Module:
    """The model with every `nn.Linear`, at any level, made a `QuantLinear`; changed in place.

    Layers quantised before get the new bits; 32 bits without `act_bits` makes them plain layers again. Other
    subclasses of `nn.Linear` are left alone, as in `decompose`.

    Args:
        model: any module; where it is a linear layer itself, the returned one replaces it.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: bits of each layer's input, 1..16, or None for float.
        scale: how the step size is chosen, a name of `SCALES`.
        levels, granularity: of the weights, as of `QuantLinear`.

    Raises:
        ValueError: bits out of range or an unknown name.
    """
    known = {"scale": (scale, SCALES), "levels": (levels, LEVELS), "granularity": (granularity, GRANULARITIES)}
    for what, (name, names) in known.items():
        if name not in names:
            raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}")

    def replace(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear and not isinstance(layer, QuantLinear):
            return None
        if weight_bits == FLOAT_BITS and act_bits is None:
            return _plain(layer)
        return QuantLinear(layer, weight_bits, act_bits, scale, levels, granularity)

    return swap(model, replace)


def _plain(layer: nn.Linear) -> nn.Linear:
    if type(layer) is nn.Linear:
        return layer
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight, plain.bias = layer.weight, layer.bias
    return plain


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> None:
    """Sets the steps of all activation quantisers from one batch x (B, ...), layer by layer in the order of use."""

    def set_first(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        quantizer.start(args[0])  # type: ignore[operator]

    observers = [m for m in model.modules() if isinstance(m, Quantizer) and m.observe]
    hooks = [m.register_forward_pre_hook(set_first) for m in observers]
    try:
        if observers:
            model.eval()
            model(x)
    finally:
        for hook in hooks:
            hook.remove()


def ledger(model: nn.Module) -> Ledger:
    """The bytes that have to be shipped for a built model, from its tensors.

    Quantised layers count their codes and steps, batch normalisations a scale and a shift per feature (their
    statistics fold into these), every other parameter four bytes, tables (buffers that are saved) what they take.
    """
    total = Ledger()
    for module in model.modules():
        if isinstance(module, Quantizer):
            continue  # its step is counted with the layer it belongs to
        if type(module) is nn.Linear or isinstance(module, QuantLinear):  # other subclasses are never split
            biases = 0 if module.bias is None else module.bias.numel()
            bits, act_bits, own = FLOAT_BITS, None, None
            if isinstance(module, QuantLinear):
                bits, act_bits, own = module.weight_bits, module.act_bits, module.weight_quantizer
            of_weights = (own.levels, own.step.numel()) if own else ()
            total += matrix_ledger(module.weight.numel(), biases, bits, act_bits, *of_weights)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            total += norm_ledger(module.num_features)
        else:
            saved = [
                b for name, b in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set
            ]
            params = sum(p.numel() for p in module.parameters(recurse=False))
            total += other_ledger(params, FLOAT_BYTES * params + sum(b.nbytes for b in saved))
    return total
