"""A packed model as an ONNX graph: products of codes where both are quantised, else weights with DequantizeLinear.

Opset 21, the first whose codes may have 4 and 16 bits (ONNX, operators QuantizeLinear and DequantizeLinear). Weights
of 1 to 4 bits are int4, two to a byte, of up to 8 int8, of up to 16 int16: ONNX has no types between these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qdtune.messages import format_value, one_line, user_error
from qdtune.model.formats.format import (
    Checked,
    Format,
    OptionalPackage,
    TrainedModel,
    averaging_of,
    input_words,
    is_pixels,
)
from qdtune.model.formats.onnx_graph import Graph, import_onnx
from qdtune.reader import Model

OPSET, IR_VERSION = 21, 10
INTERFACE = "{input}: {dtype} (batch, inputs), {values}, {inside} inside; logits: float32 (batch, {outputs})"


class OnnxFormat(Format):
    """An ONNX graph, for any runtime that knows its opset."""

    def write(self, model: TrainedModel, options: Mapping[str, str]) -> bytes:
        return to_onnx(model.model, model.name)

    def check(self, path: Path, model: TrainedModel, options: Mapping[str, str]) -> Checked:
        blob = path.read_bytes()
        try:
            check_onnx(blob)
        except Exception as error:  # the checker raises its own errors, and those of protobuf
            return Checked(f"must pass ONNX's own checker, got {one_line(str(error))[:300]}")
        return Checked()


ONNX = OnnxFormat(
    name="onnx",
    suffix=".onnx",
    card_suffix=".onnx.json",
    usage=f"any ONNX runtime of opset {OPSET}; {INTERFACE}",
    package=OptionalPackage("onnx", "pip install onnx"),
)


def to_onnx(model: Model, name: str) -> bytes:
    """The ONNX file of a packed model: `pixels`, uint8 (B, I), in; `logits`, float32 (B, O), out; B is free.

    Rows that are not uint8 are called `rows`, and have their own type.

    Args:
        model: as `reader.load` gives it, an mlp.
        name: of the graph.

    Raises:
        SpecError: the model is a user's own.
        ImportError: the package onnx is not there.
    """
    if not model.is_complete:
        what = "the forward pass of {} is in its own code, which this command does not run"
        what = what.format(format_value(model.program["model"]))
        raise user_error(f"{what}: export it as packed, then call qdtune.to_onnx(module, file)")
    from qdtune.model.layers.known import kind_of_op  # torch, which the other formats do without

    helper = import_onnx().helper
    graph = Graph(model)
    words = input_words(model.program)
    x = graph.add("Cast", [words["input"]], to=helper.TensorProto.FLOAT)
    if (averaging := averaging_of(model.program)) is not None:
        x = graph.average(averaging, x)
    if is_pixels(model.program):
        x = graph.add("Sub", [graph.add("Div", [x, graph.number(127.5)]), graph.number(1.0)])
    for op in model.layers:
        x = kind_of_op(op["op"]).add_nodes(graph, op, x)
    graph.nodes.append(helper.make_node("Identity", [x], ["logits"]))
    ends = [
        helper.make_tensor_value_info(end, kind, ["batch", model.program[width]])
        for end, kind, width in (
            (words["input"], helper.np_dtype_to_tensor_dtype(np.dtype(words["dtype"])), "inputs"),
            ("logits", helper.TensorProto.FLOAT, "outputs"),
        )
    ]
    interface = INTERFACE.format(**words)
    made = helper.make_graph(graph.nodes, name, ends[:1], ends[1:], graph.tensors, doc_string=interface)
    opset = [helper.make_opsetid("", OPSET)]
    whole = helper.make_model(
        made, producer_name="qdtune", opset_imports=opset, ir_version=IR_VERSION, doc_string=interface
    )
    blob: bytes = whole.SerializeToString()
    check_onnx(blob)
    return blob


def check_onnx(blob: bytes) -> None:
    """Returns if ONNX's own checker passes the bytes of a file; otherwise it raises, and so does its parser."""
    onnx = import_onnx()
    onnx.checker.check_model(onnx.load_from_string(blob), full_check=True)
