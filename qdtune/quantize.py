"""Few-bit weights and activations: step size, integer codes, fake quantisation, and the bytes they ship as.

A quantiser is symmetric: b bits give the codes -Q..Q with Q = 2^(b-1) - 1, one bit gives the codes -1 and 1, and a
value is its code times the step size. Codes are the truth; `fake_quantize` is their view with a gradient.
Sources: the notebook's `SymQuantSTE` and `SymQuantLinear`; for the rules see `scale_mix`.

The straight-through estimator is written with `detach`: as a `torch.autograd.Function` it gives gradients that are
silently zero under `torch.compile(vmap(grad))`. Bits and rule enter the arithmetic as tensors, so that one compiled
training step serves every bit width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdtune.decompose import swap
from qdtune.ledger import FLOAT_BITS, FLOAT_BYTES, Ledger, matrix_ledger, norm_ledger, other_ledger
from qdtune.names import SCALES

SMALLEST_STEP = 1e-8
OBSERVER_MOMENTUM = 0.01  # of the running step of activations


def max_code(bits: int) -> int:
    """Q, the largest code: 2^(b-1) - 1, and 1 at one bit."""
    return 1 if bits == 1 else 2 ** (bits - 1) - 1


def scale_mix(bits: int, scale: str) -> tuple[float, float, float]:
    """What the step size is made of: factors for max - min, for mean |x| and for the learned step.

    `minmax` is the notebook's rule, (max - min) / 2Q, and mean |x| at one bit.
    `absmean` is mean |x| / sqrt(Q): mean |x| at one bit (XNOR-Net, Rastegari et al. 2016, section 3.1) and at two
    (BitNet b1.58, Ma et al. 2024, section 2), and with more bits half of where LSQ starts. Of steps from 0.2 to 1.3
    mean |x| it was at or near the best at 3, 4 and 8 bits and depths 1 to 3 (measured, MNIST, 3 seeds).
    `lsq` learns the step (Esser et al. 2020, section 2), starting from `initial_step`.

    Raises:
        ValueError: an unknown rule.
    """
    q = max_code(bits)
    if scale == "lsq":
        return (0.0, 0.0, 1.0)
    if scale == "minmax":
        return (0.0, 1.0, 0.0) if bits == 1 else (1 / (2 * q), 0.0, 0.0)
    if scale == "absmean":
        return (0.0, 1 / math.sqrt(q), 0.0)
    raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")


def codes(x: Tensor, step: Tensor, levels: Tensor, binary: Tensor) -> Tensor:
    """The whole numbers, as floats, whose product with `step` stands for x.

    Args:
        x: what is quantised, any shape.
        step: step size > 0, 0-dim.
        levels: Q, 0-dim.
        binary: whether this is one bit, 0-dim bool: then a zero counts as positive, since there is no third code.
    """
    grid = torch.clamp(torch.round(x / step), -levels, levels)
    return torch.where(binary, torch.where(x >= 0, 1.0, -1.0), grid)


def fake_quantize(x: Tensor, step: Tensor, levels: Tensor, binary: Tensor) -> Tensor:
    """codes * step, with the straight-through gradient: 1 where |x| <= Q * step, else 0.

    A `step` that requires a gradient gets that of learned step size quantisation (Esser et al. 2020, eq. 3).
    """
    v = x / step
    v = torch.where(x.abs() <= levels * step, v, v.detach())
    return (v + (codes(x, step, levels, binary) - v).detach()) * step


class Quantizer(nn.Module):
    """Fake quantisation of one tensor.

    Args:
        bits: 1..16.
        scale: a name of `SCALES`.
        observe: for activations. The rule is then applied batch by batch while training, as in the notebook, and
            a running mean of its steps serves evaluation and export, so that a prediction does not depend on
            the batch it is made in.
    """

    levels: Tensor
    binary: Tensor
    mix: Tensor
    running: Tensor

    def __init__(self, bits: int, scale: str, observe: bool = False) -> None:
        super().__init__()
        self.bits, self.observe = bits, observe
        self.step = nn.Parameter(torch.ones(()))  # learned by lsq, idle otherwise
        self.register_buffer("levels", torch.tensor(float(max_code(bits))))
        self.register_buffer("binary", torch.tensor(bits == 1))
        self.register_buffer("mix", torch.tensor(scale_mix(bits, scale)))
        if observe:
            self.register_buffer("running", torch.ones(()))

    def step_size(self, x: Tensor) -> Tensor:
        """The step for x by this quantiser's rule, 0-dim, > 0."""
        fixed = x.detach()
        low, high = torch.aminmax(fixed)
        spread, mean = high - low, fixed.abs().mean()
        # The gradient of a learned step is scaled down by sqrt(N * Q), with N weights, or features of one sample:
        # Esser et al. 2020, section 2.2.
        count = x[0].numel() if self.observe else x.numel()
        damping = 1 / (math.sqrt(count) * self.levels.sqrt())
        learned = self.step.abs() * damping
        learned = learned + (self.step.abs() - learned).detach()
        step = self.mix[0] * spread + self.mix[1] * mean + self.mix[2] * learned
        return step.clamp_min(SMALLEST_STEP)

    @torch.no_grad()
    def start(self, x: Tensor) -> None:
        """Sets the learned and the running step from a first tensor (Esser et al. 2020, section 2.1)."""
        mean = x.abs().mean()
        self.step.copy_(torch.where(self.binary, mean, 2 * mean / self.levels.sqrt()).clamp_min(SMALLEST_STEP))
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
        return fake_quantize(x, self.current(x), self.levels, self.binary)


class QuantLinear(nn.Linear):
    """A linear layer whose weights, and where asked whose inputs, are fake-quantised in every forward pass.

    Takes over the weight and bias of `linear`; nothing is copied.

    Args:
        linear: the layer it replaces.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: 1..16, or None for float inputs.
        scale: a name of `SCALES`, for weights and inputs.

    Raises:
        ValueError: bits out of range or an unknown rule.
    """

    def __init__(self, linear: nn.Linear, weight_bits: int, act_bits: int | None, scale: str) -> None:
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
            self.weight_quantizer = Quantizer(weight_bits, scale).to(self.weight.device)
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
        return codes(self.weight, step, quantizer.levels, quantizer.binary).to(torch.int32), step


def quantize(model: nn.Module, weight_bits: int, act_bits: int | None = None, scale: str = "absmean") -> nn.Module:
    """The model with every `nn.Linear`, at any level, made a `QuantLinear`; changed in place.

    Layers quantised before get the new bits; 32 bits without `act_bits` makes them plain layers again. Other
    subclasses of `nn.Linear` are left alone, as in `decompose`.

    Args:
        model: any module; where it is a linear layer itself, the returned one replaces it.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: bits of each layer's input, 1..16, or None for float.
        scale: how the step size is chosen, a name of `SCALES`.

    Raises:
        ValueError: bits out of range or an unknown rule.
    """
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")

    def replace(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear and not isinstance(layer, QuantLinear):
            return None
        if weight_bits == FLOAT_BITS and act_bits is None:
            return _plain(layer)
        return QuantLinear(layer, weight_bits, act_bits, scale)

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
            bits, act_bits = FLOAT_BITS, None
            if isinstance(module, QuantLinear):
                bits, act_bits = module.weight_bits, module.act_bits
            total += matrix_ledger(module.weight.numel(), biases, bits, act_bits)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            total += norm_ledger(module.num_features)
        else:
            saved = [
                b for name, b in module.named_buffers(recurse=False) if name not in module._non_persistent_buffers_set
            ]
            params = sum(p.numel() for p in module.parameters(recurse=False))
            total += other_ledger(params, FLOAT_BYTES * params + sum(b.nbytes for b in saved))
    return total
