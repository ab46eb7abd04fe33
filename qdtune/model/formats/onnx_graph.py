"""The nodes and constants of an ONNX graph, as layer kinds add them: see `formats/onnx.py`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from qdtune.reader import EXACT_FLOAT32, GRIDS, Model, area_weights, codes
from qdtune.spec.choices import FLOAT_BITS

EXACT_AREA = 2**13  # sums of pixels by weights that add up to less are rounded alike in float32 by any division
RAW_DTYPES = {"FLOAT": "<f4", "INT8": "i1", "UINT8": "u1", "INT16": "<i2", "UINT16": "<u2"}  # of a constant's bytes
RAW_DTYPES |= {"DOUBLE": "<f8", "INT64": "<i8"}
NIBBLE_BITS, BYTE_BITS = 4, 8  # of codes; MatMulInteger multiplies bytes
LARGEST_INT32 = 2**31 - 1


class Graph:
    """Nodes and constants, as they are added.

    `axes_after` is the number of axes after that of the channels: 0 of rows, 2 of images.
    """

    axes_after = 0

    def __init__(self, model: Model) -> None:
        self.model, self.nodes, self.tensors = model, list[Any](), list[Any]()

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Adds a node; the name of what comes out of it."""
        name = f"x{len(self.nodes)}"
        self.nodes.append(import_onnx().helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: np.ndarray[Any, Any], kind: str = "FLOAT", name: str | None = None) -> str:
        """Adds a constant of a type of ONNX's; its name. As bytes: in a list a negative number would take ten."""
        name = name or f"c{len(self.tensors)}"
        data = _nibbles(values) if kind == "INT4" else values.astype(RAW_DTYPES[kind]).tobytes()
        helper = import_onnx().helper
        self.tensors.append(helper.make_tensor(name, getattr(helper.TensorProto, kind), values.shape, data, raw=True))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def tensor(self, name: str) -> str:
        return self.constant(self.model.tensors[name], name=name)

    def average(self, op: dict[str, Any], x: str) -> str:
        """Adds the averaging of images (B, C H W), which are whole numbers, as floats.

        The sums are whole numbers. Half of one is added before they are divided, so that no rounding of a quotient
        crosses a whole number.
        """
        image, size = op["image"], op["size"]
        down, right = (area_weights(n, m) for n, m in zip(image[1:], size, strict=True))
        total = int(down[0].sum() * right[0].sum())
        kind = "FLOAT" if total < EXACT_AREA else "DOUBLE"
        if kind == "DOUBLE":
            x = self.add("Cast", [x], to=import_onnx().TensorProto.DOUBLE)
        x = self.add("Reshape", [x, self.constant(np.array([-1, *image]), "INT64")])
        x = self.add("MatMul", [self.constant(down, kind), self.add("MatMul", [x, self.constant(right.T, kind)])])
        x = self.add("Add", [x, self.constant(np.array(total / 2 + 0.25), kind)])
        x = self.add("Floor", [self.add("Div", [x, self.constant(np.array(total), kind)])])
        if kind == "DOUBLE":
            x = self.add("Cast", [x], to=import_onnx().TensorProto.FLOAT)
        return self.add("Reshape", [x, self.constant(np.array([-1, image[0] * math.prod(size)]), "INT64")])

    def channels(self, name: str) -> str:
        """Adds a tensor of one number for each channel, in a shape that fits the axes after the channels."""
        return self.constant(self.model.tensors[name].reshape(-1, *[1] * self.axes_after), name=name)

    def cast(self, x: str, kind: str) -> str:
        """Adds a change of type, to one of ONNX's."""
        return self.add("Cast", [x], to=getattr(import_onnx().TensorProto, kind))

    def product(self, op: dict[str, Any], x: str, kind: str, **attributes: Any) -> str:
        """Adds the product of an operation's input and weight, a node of a `kind` such as `Gemm`, without its bias.

        `axes_after` axes of the product follow that of its output channels.

        If both are quantised, it multiplies codes, in a type that holds their sums exactly, and both steps
        afterwards. So every runtime finds the same sums. Rows of bytes are multiplied as bytes, which is the fastest.
        QuantizeLinear and DequantizeLinear around a Gemm would invite a runtime to fuse them, and such kernels
        saturate or refuse some shapes (onnxruntime#16105, #25259).
        """
        if op["act_bits"] is None or op["bits"] == FLOAT_BITS:
            return self.add(kind, [self.quantized_input(op, x), self.weight(op)], **attributes)
        step = self.model.tensors[op["input_step"]]
        inputs = self.input_codes(op, x)
        if kind == "Gemm" and _fits_bytes(op):
            sums = self._multiply_bytes(op, inputs)
        else:
            sums = self._multiply_floats(op, inputs, kind, attributes)
        steps = (step * self.model.tensors[op["step"]]).reshape(-1, *[1] * self.axes_after)
        return self.add("Mul", [sums, self.constant(steps)])

    def _multiply_floats(self, op: dict[str, Any], inputs: str, kind: str, attributes: dict[str, Any]) -> str:
        """Adds a product of codes as floats of a type that holds their sums."""
        weights = self.add("DequantizeLinear", [self.weight_codes(op), self.number(1.0)])
        if kind == "Conv":
            return self._convolve_codes(op, inputs, weights, attributes)
        if _largest_sum(op) < EXACT_FLOAT32:
            return self.add(kind, [inputs, weights], **attributes)
        doubles = [self.cast(one, "DOUBLE") for one in (inputs, weights)]
        return self.cast(self.add(kind, doubles, **attributes), "FLOAT")

    def _multiply_bytes(self, op: dict[str, Any], inputs: str) -> str:
        """Adds the products of rows of codes and a matrix, as bytes that are summed in 32 bits; the sums as floats.

        On processors without VNNI, ONNX Runtime adds two products of a uint8 and an int8 in 16 bits. They hold those
        of weights of up to 7 bits. Weights of 8 bits are shifted to uint8, whose products it adds in 32 bits.
        """
        low = GRIDS[op["act_bits"], op.get("input_levels")][0]
        zero, weight_zero, kind = max(0, -low), 0, "INT8"
        rows = self.cast(self.add("Add", [inputs, self.number(zero)]) if zero else inputs, "UINT8")
        weights = self.weight_codes(op)
        if op["bits"] == BYTE_BITS:
            weight_zero, kind = 2 ** (BYTE_BITS - 1), "UINT8"
            weights = self.add("Add", [self.cast(weights, "INT64"), self.constant(np.array(weight_zero), "INT64")])
        if op["bits"] == BYTE_BITS or op["bits"] <= NIBBLE_BITS:
            weights = self.cast(weights, kind)
        zeros = [self.constant(np.array(zero), "UINT8")] if zero or weight_zero else []
        zeros += [self.constant(np.array(weight_zero), kind)] if weight_zero else []
        sums = self.add("MatMulInteger", [rows, self.add("Transpose", [weights]), *zeros])
        return self.cast(sums, "FLOAT")

    def _convolve_codes(self, op: dict[str, Any], inputs: str, weights: str, attributes: dict[str, Any]) -> str:
        """Adds a convolution of codes, whose sums are exact.

        Runtimes convolve floats in float32 alone, and ConvInteger is no faster in ONNX Runtime. If float32 does not
        hold the sums, the weights are cut into digits whose sums it does hold, and these sums are added as doubles
        (see `Quantized._sum_exactly`). If inputs are so large that no digit of weights is small enough, they are cut
        in two, too.
        """
        largest = _largest_sum(op)
        if largest <= max(EXACT_FLOAT32, (EXACT_FLOAT32 << op["bits"] - 1) // 2):
            sums, is_double = self._convolve_digits(op, inputs, weights, attributes, largest)
            return self.cast(sums, "FLOAT") if is_double else sums
        half_bits = op["act_bits"] // 2
        base = self.number(2.0**half_bits)
        high = self.add("Floor", [self.add("Div", [inputs, base])])
        low = self.add("Sub", [inputs, self.add("Mul", [high, base])])
        largest = math.prod(op["shape"][1:]) << op["act_bits"] - half_bits + op["bits"] - 1
        total = ""
        for part, place in ((low, 1.0), (high, 2.0**half_bits)):
            sums, _ = self._convolve_digits(op, part, weights, attributes, largest)
            total = self._add_digit(total, sums, place)
        return self.cast(total, "FLOAT")

    def _convolve_digits(
        self, op: dict[str, Any], inputs: str, weights: str, attributes: dict[str, Any], largest: int
    ) -> tuple[str, bool]:
        """As `_convolve_codes`, and whether it is double, because digits are added; no sum is above `largest`."""
        bits, place, total = op["bits"] - 1, 1.0, ""
        base_bits = int(EXACT_FLOAT32 * 2**bits / largest).bit_length() - 1
        while bits > base_bits >= 1:
            base = self.number(2.0**base_bits)
            high = self.add("Floor", [self.add("Div", [weights, base])])
            low = self.add("Sub", [weights, self.add("Mul", [high, base])])
            total = self._add_digit(total, self.add("Conv", [inputs, low], **attributes), place)
            weights, place, bits = high, place * 2.0**base_bits, bits - base_bits
        sums = self.add("Conv", [inputs, weights], **attributes)
        return (self._add_digit(total, sums, place), True) if total else (sums, False)

    def _add_digit(self, total: str, sums: str, place: float) -> str:
        """Adds `sums` times the worth of its digit to a total of doubles, which may not have begun."""
        part = self.add("Mul", [self.cast(sums, "DOUBLE"), self.constant(np.array(place), "DOUBLE")])
        return self.add("Add", [total, part]) if total else part

    def weight(self, op: dict[str, Any]) -> str:
        """Adds the weight of an operation, in the shape of the operation."""
        if op["bits"] == FLOAT_BITS:
            return self.tensor(op["weight"])
        codes_name = self.weight_codes(op)
        if not self.model.tensors[op["step"]].ndim:
            return self.add("DequantizeLinear", [codes_name, self.tensor(op["step"])])
        steps = self.constant(self.model.tensors[op["step"]].ravel(), name=op["step"])
        return self.add("DequantizeLinear", [codes_name, steps], axis=0)  # a step for each output channel

    def weight_codes(self, op: dict[str, Any]) -> str:
        """Adds the codes of the weight of an operation of few bits, in the narrowest type that holds them."""
        narrow = next(n for n in (NIBBLE_BITS, BYTE_BITS, 16) if op["bits"] <= n)
        return self.constant(codes(self.model.stored, op), f"INT{narrow}", op["weight"])

    def quantized_input(self, op: dict[str, Any], x: str) -> str:
        """Adds the rounding of an operation's input to its levels; x itself if it is float."""
        if op["act_bits"] is None:
            return x
        return self.add("Mul", [self.input_codes(op, x), self.constant(self.model.tensors[op["input_step"]])])

    def input_codes(self, op: dict[str, Any], x: str) -> str:
        """Adds the codes of an operation's input: whole numbers, as floats."""
        low, high, binary = GRIDS[op["act_bits"], op.get("input_levels")]
        if binary:
            is_up = self.add("GreaterOrEqual", [x, self.number(0.0)])
            return self.add("Where", [is_up, self.number(1.0), self.number(-1.0)])
        # Round takes halves to the even neighbour, as the reader does.
        x = self.add("Round", [self.add("Div", [x, self.constant(self.model.tensors[op["input_step"]])])])
        # Not Clip: ONNX Runtime 1.32 makes one of it and of a Relu before it, and other codes come out.
        return self.add("Min", [self.add("Max", [x, self.number(low)]), self.number(high)])


def import_onnx() -> Any:
    """The optional package onnx, which nothing else needs."""
    import onnx

    return onnx


def _fits_bytes(op: dict[str, Any]) -> bool:
    """Whether the codes of an operation are bytes whose sums of products 32 bits hold."""
    return max(op["act_bits"], op["bits"]) <= BYTE_BITS and _largest_sum(op) <= LARGEST_INT32


def _largest_sum(op: dict[str, Any]) -> int:
    """No sum of an operation's products of codes is larger than this."""
    ends = [GRIDS[op["act_bits"], op.get("input_levels")], GRIDS[op["bits"], op.get("levels")]]
    most = [max(-low, high) for low, high, _ in ends]
    return math.prod(op["shape"][1:]) * most[0] * most[1]


def _nibbles(values: np.ndarray[Any, Any]) -> bytes:
    """Whole numbers of 4 bits, two to a byte, the first in its lower half."""
    low, high = np.pad(values.flatten() & 15, (0, values.size % 2)).reshape(-1, 2).T
    return (low | high << 4).astype(np.uint8).tobytes()
