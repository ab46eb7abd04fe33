"""A packed model as an ONNX graph: its codes with DequantizeLinear, quantised inputs with QuantizeLinear.

Opset 21, the first whose codes may have 4 and 16 bits (ONNX, operators QuantizeLinear and DequantizeLinear). Weights
of 1 to 4 bits are int4, two to a byte, of up to 8 int8, of up to 16 int16: ONNX has no types between these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qdtune.messages import format_value, one_line, user_error
from qdtune.model.formats.format import Format, OptionalPackage, TrainedModel
from qdtune.reader import GRIDS, Model, codes
from qdtune.spec.choices import FLOAT_BITS

OPSET, IR_VERSION = 21, 10
INTERFACE = "pixels: uint8 (batch, inputs), 0 to 255, normalised inside; logits: float32 (batch, classes)"
RAW_DTYPES = {"FLOAT": "<f4", "INT8": "i1", "UINT8": "u1", "INT16": "<i2", "UINT16": "<u2"}  # of a constant's bytes


class OnnxFormat(Format):
    """An ONNX graph, for any runtime that knows its opset."""

    def write(self, model: TrainedModel, options: Mapping[str, str]) -> bytes:
        return to_onnx(model.model, model.name)

    def find_fault(self, path: Path, model: TrainedModel, options: Mapping[str, str]) -> str | None:
        blob = path.read_bytes()
        try:
            check_onnx(blob)
        except Exception as error:  # the checker raises its own errors, and those of protobuf
            return f"must pass ONNX's own checker, got {one_line(str(error))[:300]}"
        return None


ONNX = OnnxFormat(
    name="onnx",
    suffix=".onnx",
    card_suffix=".onnx.json",
    usage=f"any ONNX runtime of opset {OPSET}; {INTERFACE}",
    package=OptionalPackage("onnx", "pip install 'qdtune[onnx]'"),
)


def to_onnx(model: Model, name: str) -> bytes:
    """The ONNX file of a packed model: `pixels`, uint8 (B, I), in; `logits`, float32 (B, O), out; B is free.

    Args:
        model: as `reader.load` gives it, an mlp.
        name: of the graph.

    Raises:
        SpecError: the model is a user's own.
        ImportError: the package onnx is not there.
    """
    kind = model.program["model"]
    if kind != "mlp":
        raise user_error(f"only the model mlp can be had as ONNX, got {format_value(kind)}: export it as packed")
    from qdtune.model.layers.known import kind_of_op  # torch, which the other formats do without

    helper = _library().helper
    graph = Graph(model)
    x = graph.add("Cast", ["pixels"], to=helper.TensorProto.FLOAT)
    x = graph.add("Sub", [graph.add("Div", [x, graph.number(127.5)]), graph.number(1.0)])
    for op in model.program["ops"]:
        x = kind_of_op(op["op"]).add_nodes(graph, op, x)
    graph.nodes.append(helper.make_node("Identity", [x], ["logits"]))
    ends = [
        helper.make_tensor_value_info(end, kind, ["batch", model.program[width]])
        for end, kind, width in (
            ("pixels", helper.TensorProto.UINT8, "inputs"),
            ("logits", helper.TensorProto.FLOAT, "outputs"),
        )
    ]
    made = helper.make_graph(graph.nodes, name, ends[:1], ends[1:], graph.tensors, doc_string=INTERFACE)
    opset = [helper.make_opsetid("", OPSET)]
    whole = helper.make_model(
        made, producer_name="qdtune", opset_imports=opset, ir_version=IR_VERSION, doc_string=INTERFACE
    )
    blob: bytes = whole.SerializeToString()
    check_onnx(blob)
    return blob


def check_onnx(blob: bytes) -> None:
    """Returns if ONNX's own checker passes the bytes of a file; otherwise it raises, and so does its parser."""
    onnx = _library()
    onnx.checker.check_model(onnx.load_from_string(blob), full_check=True)


def _library() -> Any:
    import onnx  # an optional package, which nothing else needs

    return onnx


class Graph:
    """Nodes and constants, as they are added."""

    def __init__(self, model: Model) -> None:
        self.model, self.nodes, self.tensors = model, list[Any](), list[Any]()

    def add(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Adds a node; the name of what comes out of it."""
        name = f"x{len(self.nodes)}"
        self.nodes.append(_library().helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: np.ndarray[Any, Any], kind: str = "FLOAT", name: str | None = None) -> str:
        """Adds a constant of a type of ONNX's; its name. As bytes: in a list a negative number would take ten."""
        name = name or f"c{len(self.tensors)}"
        data = _nibbles(values) if kind == "INT4" else values.astype(RAW_DTYPES[kind]).tobytes()
        helper = _library().helper
        self.tensors.append(helper.make_tensor(name, getattr(helper.TensorProto, kind), values.shape, data, raw=True))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def tensor(self, name: str) -> str:
        return self.constant(self.model.stored[name], name=name)

    def weight(self, op: dict[str, Any]) -> str:
        """Adds the weight of an operation, in the shape of the operation."""
        if op["bits"] == FLOAT_BITS:
            return self.tensor(op["weight"])
        narrow = next(n for n in (4, 8, 16) if op["bits"] <= n)
        inputs = [self.constant(codes(self.model.stored, op), f"INT{narrow}", op["weight"])]
        if not self.model.stored[op["step"]].ndim:
            return self.add("DequantizeLinear", [*inputs, self.tensor(op["step"])])
        steps = self.constant(self.model.stored[op["step"]].ravel(), name=op["step"])
        return self.add("DequantizeLinear", [*inputs, steps], axis=0)  # a step for each output channel

    def quantized_input(self, op: dict[str, Any], x: str) -> str:
        """Adds the quantisation of an operation's input, if it has any; the name of what the operation takes."""
        if op["act_bits"] is None:
            return x
        step = float(self.model.stored[op["input_step"]])
        low, high, binary = GRIDS[op["act_bits"], op.get("input_levels")]
        up = self.number(step)
        if binary:  # two levels and no zero between them: QuantizeLinear has no such grid
            return self.add("Where", [self.add("GreaterOrEqual", [x, self.number(0.0)]), up, self.number(-step)])
        # Not Clip: ONNX Runtime 1.32 makes one of it and of a Relu before it, and other codes come out.
        x = self.add("Min", [self.add("Max", [x, self.number(low * step)]), self.number(high * step)])
        kind = f"{'INT' if low else 'UINT'}{8 if high - low < 256 else 16}"
        zero = self.constant(np.array(0), kind)
        # QuantizeLinear rounds halves to the even neighbour, as the reader does.
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [x, up, zero]), up, zero])


def _nibbles(values: np.ndarray[Any, Any]) -> bytes:
    """Whole numbers of 4 bits, two to a byte, the first in its lower half."""
    low, high = np.pad(values.flatten() & 15, (0, values.size % 2)).reshape(-1, 2).T
    return (low | high << 4).astype(np.uint8).tobytes()
