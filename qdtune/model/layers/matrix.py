"""Layers whose weight is a matrix of O rows: how they are quantised, counted and packed.

A weight of more axes, such as that of a convolution, counts as the matrix (O, product of the other axes). A weight of
one axis counts as the matrix (O, 1). A kind of such layers subclasses `MatrixKind`: it names its modules, builds its
chain of factors and adds its nodes to an ONNX graph.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from qdtune.model.chain import Chain
from qdtune.model.layers.kind import LayerKind, Op
from qdtune.model.overhead import FLOAT32, pack_factor, pack_terms, round_terms
from qdtune.model.quantizer import Quantizer, round_to_codes
from qdtune.reader import EXACT_FLOAT32, GRIDS
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.sizes import TRITS, Sizes, matrix_sizes
from qdtune.spec.structure import LayerShape


class Digits(NamedTuple):
    """How codes of weights are cut so that float32 holds every sum: digits from 0 to base - 1, and what is left.

    Attributes:
        base: a power of 2; sums of codes times weights from -base to base are exact.
        lower: the number of digits that are cut off; 0 if the codes are no larger than the base.
    """

    base: int
    lower: int


class Quantized(nn.Module):
    """The shared part of all quantised layers; a subclass lists it before the class of the float layer.

    Attributes:
        weight, bias: the parameters of the layer that this one replaces; they are not copied.
        weight_bits: 1..16, or 32 for float weights.
        act_bits: 1..16, or None for float inputs.
        weight_quantizer, input_quantizer: None if the weights or the inputs are float.
        digits: in which evaluation on a CPU sums codes in float32; None: it sums them in float64.
        overhead: how the bias and the step sizes are stored, a name of `axes.OVERHEAD`.
    """

    weight: Tensor
    bias: Any
    weight_bits: int
    act_bits: int | None
    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    digits: Digits | None = None  # right for all bits; a template does not know those of its replicas
    overhead = FLOAT32

    def take_over(
        self, layer: Any, weight_bits: int, act_bits: int | None, scale: str, levels: str, granularity: str
    ) -> None:
        """Takes over the weight and bias of a layer and starts to quantise them.

        Args:
            layer: the layer that this one replaces.
            weight_bits: 1..16, or 32 for float weights.
            act_bits: 1..16, or None for float inputs.
            scale: the rule of the step sizes of weights and inputs, a name of `axes.SCALE`.
            levels: of the weights, a name of `axes.LEVELS`.
            granularity: of the weights, a name of `axes.GRANULARITY`.

        Raises:
            ValueError: bits out of range.
        """
        if weight_bits != FLOAT_BITS and not 1 <= weight_bits <= 16:
            raise ValueError(f"weight_bits must be 1 to 16, or 32 for float, got {weight_bits}")
        if act_bits is not None and not 1 <= act_bits <= 16:
            raise ValueError(f"act_bits must be 1 to 16, or None for float, got {act_bits}")
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_bits, self.act_bits = weight_bits, act_bits
        self.weight_quantizer = self.input_quantizer = None
        if weight_bits != FLOAT_BITS:
            rows = len(self.weight) if granularity == "channel" else None
            self.weight_quantizer = Quantizer(weight_bits, scale, levels, rows).to(self.weight.device)
            self.weight_quantizer.start(as_matrix(self.weight))
        if act_bits is not None:
            self.input_quantizer = Quantizer(act_bits, scale, observe=True).to(self.weight.device)

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input as the layer computes with it."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def multiply(
        self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, channel_axis: int = -1
    ) -> Tensor:
        """`function(x, weight, bias)` on the input and the weight as the layer computes with them.

        In evaluation, if both are quantised, the function sums codes, which are whole numbers. The sums are
        multiplied by both steps, and the bias is added. Such sums are exact in any order, so every runtime finds the
        same ones. A sum of values has rounding errors, which decide the sign of a sum that is really 0: at one bit,
        most samples have one (measured, MNIST, 784-24-10, depth 2).

        Args:
            function: bilinear plus a bias (None: without), such as `torch.nn.functional.linear`.
            x: the input.
            channel_axis: of what the function returns, the axis of the O channels.
        """
        own, of_input, bias = self.weight_quantizer, self.input_quantizer, self.stored_bias()
        if self.training or own is None or of_input is None:
            return function(self.quantized_input(x), self.quantized_weight(), bias)
        codes, step = self.weight_codes()
        input_step = of_input.current_step(x)
        inputs = round_to_codes(x, input_step, of_input.grid)
        sums = self._sum_exactly(function, inputs, codes.to(x.dtype)).to(x.dtype)
        after = [1] * (-channel_axis - 1)
        product = sums * (input_step * step.flatten()).view(-1, *after)  # (1, ...), or (O, ...)
        return product if bias is None else product + bias.view(-1, *after)

    def _sum_exactly(
        self, function: Callable[[Tensor, Tensor, Tensor | None], Tensor], inputs: Tensor, codes: Tensor
    ) -> Tensor:
        """The sums of products of codes, float32 or float64.

        Double holds whole numbers up to 2^53. Float32 is twice as fast or more, and the only type in which ONNX
        Runtime convolves, but holds them up to 2^24 only, so the codes of a weight may have to be cut into digits. On
        a GPU, fast kernels of float32 round within a sum.
        """
        if self.digits is None or inputs.device.type != "cpu":
            return function(inputs.double(), codes.double(), None)
        total, place = torch.zeros((), dtype=torch.float64), 1
        for _ in range(self.digits.lower):
            high = torch.floor(codes / self.digits.base)
            total = total + place * function(inputs, codes - self.digits.base * high, None).double()
            codes, place = high, place * self.digits.base
        rest = function(inputs, codes, None)
        return rest if place == 1 else total + place * rest.double()

    def find_digits(self) -> Digits | None:
        """The digits in which float32 sums codes of these bits; None if it cannot."""
        room = EXACT_FLOAT32 // (self.weight[0].numel() * 2 ** (self.act_bits or 0))
        if room < 2:
            return None
        bits = room.bit_length() - 1
        return Digits(2**bits, max(0, -(-(self.weight_bits - 1 - bits) // bits)))

    def stored_bias(self) -> Tensor | None:
        """The bias as the layer computes with it."""
        return self.bias if self.bias is None or self.overhead == FLOAT32 else round_terms(self.bias, self.overhead)

    def quantized_weight(self) -> Tensor:
        """The weight as the layer computes with it."""
        if self.weight_quantizer is None:
            return self.weight
        if self.weight.ndim == 2:  # this saves two operations per training step
            return self.weight_quantizer(self.weight)
        return self.weight_quantizer(as_matrix(self.weight)).view(self.weight.shape)

    @torch.no_grad()
    def weight_codes(self) -> tuple[Tensor, Tensor]:
        """The integer codes of the weight, in its shape, and the step size that multiplies them, as they are packed.

        Raises:
            ValueError: the weights of this layer are float.
        """
        quantizer = self.weight_quantizer
        if quantizer is None:
            raise ValueError("this layer's weights are float (weight_bits 32): they have no codes")
        matrix = as_matrix(self.weight)
        step = quantizer.step_size(matrix)
        found = round_to_codes(matrix, step, quantizer.grid).to(torch.int32).view(self.weight.shape)
        return found, step.view(-1, *[1] * (self.weight.ndim - 1)) if step.ndim else step


class MatrixKind(LayerKind):
    """A kind of layer whose weight is a matrix of O rows.

    Attributes:
        name: of its operation in a packed program.
        plain: the class of the float layer. Its subclasses are not changed, because their owners may read their
            weights instead of calling them, as `nn.MultiheadAttention` does.
        chain: the class of its chains; None if it is never split.
        quantized: a subclass of `Quantized` and of `plain`; its arguments are those of `take_over`.
    """

    name: ClassVar[str]
    plain: ClassVar[type[nn.Module]]
    chain: ClassVar[type[Chain] | None] = None
    quantized: ClassVar[type[Quantized]]

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):  # a class between this one and the kinds has none
            cls.ops = (cls.name,)

    @abstractmethod
    def plain_copy(self, layer: Any) -> nn.Module:
        """A float layer of the same shape on the meta device; `quantize` gives it the weight and the bias."""

    def owns(self, module: nn.Module) -> bool:
        return type(module) is self.plain or isinstance(module, self.quantized)

    def can_split(self, module: nn.Module) -> bool:
        return self.chain is not None and (type(module) is self.plain or isinstance(module, self.chain))

    def quantize(
        self, layer: Any, weight_bits: int, act_bits: int | None, scale: str, levels: str, granularity: str
    ) -> nn.Module:
        if weight_bits != FLOAT_BITS or act_bits is not None:
            return self.quantized(layer, weight_bits, act_bits, scale, levels, granularity)
        if type(layer) is self.plain:
            return layer
        plain: Any = self.plain_copy(layer)
        plain.weight, plain.bias = layer.weight, layer.bias
        return plain

    def set_overhead(self, layer: Any, overhead: str) -> nn.Module:
        if overhead == FLOAT32 and not isinstance(layer, Quantized):
            return layer
        made: Any = layer
        if not isinstance(layer, Quantized):
            made = self.quantized(layer, FLOAT_BITS, None, "lsq", "symmetric", "tensor")
        for part in (made, made.weight_quantizer, made.input_quantizer):
            if part is not None:
                part.overhead = overhead
        return made

    def shape(self, layer: Any) -> LayerShape:
        rows = len(layer.weight)
        has_bias = layer.bias is not None
        return LayerShape(layer.weight.numel() // rows, rows, has_bias, self.name, self.chain is not None)

    def count(self, layer: Any) -> Sizes:
        biases = 0 if layer.bias is None else layer.bias.numel()
        if not isinstance(layer, Quantized):
            return matrix_sizes(layer.weight.numel(), biases, FLOAT_BITS, None)
        own = layer.weight_quantizer
        levels, steps = (own.levels, own.step.numel()) if own else ("symmetric", 0)
        bits = (layer.weight_bits, layer.act_bits)
        return matrix_sizes(layer.weight.numel(), biases, *bits, levels, steps, layer.overhead)

    def pack(self, layer: Any, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        bits, act_bits, found = FLOAT_BITS, None, {"weight": layer.weight.detach()}
        levels, input_levels, overhead = "symmetric", "symmetric", FLOAT32
        if isinstance(layer, Quantized):
            bits, act_bits, overhead = layer.weight_bits, layer.act_bits, layer.overhead
            if layer.weight_quantizer is not None:
                codes, step = layer.weight_codes()
                found["step"] = pack_factor(step, overhead)
                levels = layer.weight_quantizer.levels
                found["weight"] = pack_codes(codes, bits, levels)
            if layer.input_quantizer is not None:
                input_levels = layer.input_quantizer.levels
                # In evaluation, the step size is the same for any tensor.
                found["input_step"] = pack_factor(layer.input_quantizer.current_step(layer.weight), overhead)
        if layer.bias is not None:
            found["bias"] = pack_terms(layer.bias.detach(), overhead)
        tensors = {f"{prefix}{role}": tensor for role, tensor in found.items()}
        names = {
            role: f"{prefix}{role}" if role in found else None for role in ("weight", "step", "bias", "input_step")
        }
        settings = {"bits": bits, "levels": levels, "act_bits": act_bits, "input_levels": input_levels}
        return {
            "op": self.name,
            "shape": list(layer.weight.shape),
            **settings,
            **names,
            **self.settings(layer),
        }, tensors

    def settings(self, layer: Any) -> Op:
        """What its operation says besides: settings of the layer that are no tensors, such as a stride."""
        return {}


def as_matrix(weight: Tensor) -> Tensor:
    """The weight (O, ...) of a layer as a matrix (O, I) that shares its memory; a vector is a matrix (O, 1)."""
    return weight[:, None] if weight.ndim == 1 else weight.flatten(1)


def pack_codes(codes: Tensor, bits: int, levels: str = "symmetric") -> Tensor:
    """Codes of 1..16 bits as one stream of `sizes.code_bytes` bytes, uint8; `reader.codes` decodes it."""
    low, _, binary = GRIDS[bits, levels]
    unsigned = (codes - low) // (1 + binary)
    if levels == "ternary" and bits == 2:
        digits = nn.functional.pad(unsigned.flatten(), (0, -unsigned.numel() % TRITS)).reshape(-1, TRITS)
        return (digits * 3 ** torch.arange(TRITS)).sum(1).to(torch.uint8)
    stream = (unsigned.reshape(-1, 1) >> torch.arange(bits)) & 1  # (O*I, bits), the lowest bit first
    padded = nn.functional.pad(stream.flatten(), (0, -stream.numel() % 8)).reshape(-1, 8)
    return (padded << torch.arange(8)).sum(1).to(torch.uint8)
