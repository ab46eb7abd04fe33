"""Is a product of codes faster as bytes or as floats in ONNX Runtime? One layer each way, one thread.

    python tests/benchmarks/onnx_bytes.py [--repeats 7]

Both graphs round their inputs to 8 bits and multiply them by weights of 8 bits: as `MatMulInteger` or `ConvInteger`,
and as a float32 `Gemm` or `Conv` of the same codes. Their sums are compared.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from common import arguments, machine, publish, spread, table
from onnx import TensorProto, numpy_helper

SIDE, ZERO, OPSET, IR_VERSION = 16, 128, 21, 10
SECONDS = 0.02  # of one timing
# name -> shape of the weight, groups; 0 groups: linear
LAYERS: dict[str, tuple[tuple[int, ...], int]] = {
    "linear 784-64": ((64, 784), 0),
    "linear 256-64": ((64, 256), 0),
    "linear 64-10": ((10, 64), 0),
    "3 x 3, 16 to 16 channels, 16 x 16 pixels": ((16, 16, 3, 3), 1),
    "3 x 3, depthwise, 16 channels, 16 x 16 pixels": ((16, 1, 3, 3), 16),
}
make_node: Any = onnx.helper.make_node


def make_session(codes: np.ndarray[Any, Any], groups: int, as_bytes: bool) -> onnxruntime.InferenceSession:
    """A graph that multiplies rounded inputs by codes."""
    constants: dict[str, np.ndarray[Any, Any]] = {
        name: np.array(value, np.float32) for name, value in (("step", 0.05), ("low", 0), ("high", 255))
    }
    nodes = [make_node("Div", ["x", "step"], ["a"]), make_node("Round", ["a"], ["b"])]
    nodes += [make_node("Max", ["b", "low"], ["c"]), make_node("Min", ["c", "high"], ["codes"])]
    window = {"pads": [1, 1, 1, 1], "group": groups} if groups else {}
    if as_bytes:
        shifted = (codes if groups else codes.T) + ZERO
        constants |= {
            "w": shifted.astype(np.uint8),
            "zero": np.array(0, np.uint8),
            "w_zero": np.array(ZERO, np.uint8),
        }
        nodes.append(make_node("Cast", ["codes"], ["bytes"], to=TensorProto.UINT8))
        kind = "ConvInteger" if groups else "MatMulInteger"
        nodes.append(make_node(kind, ["bytes", "w", "zero", "w_zero"], ["whole"], **window))
        nodes.append(make_node("Cast", ["whole"], ["sums"], to=TensorProto.FLOAT))
    else:
        constants |= {"w": codes.astype(np.int8), "one": np.array(1, np.float32)}
        nodes.append(make_node("DequantizeLinear", ["w", "one"], ["floats"]))
        settings = window if groups else {"transB": 1}
        nodes.append(make_node("Conv" if groups else "Gemm", ["codes", "floats"], ["sums"], **settings))
    ends = [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "sums")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph(nodes, "layer", ends[:1], ends[1:], tensors)
    opset = [onnx.helper.make_opsetid("", OPSET)]
    blob = onnx.helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])


def time_run(session: onnxruntime.InferenceSession, x: np.ndarray[Any, Any]) -> float:
    """Microseconds of one run."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        session.run(None, {"x": x})
        count += 1
    return (time.perf_counter() - start) / count * 1e6


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=7)
    given = parser.parse_args()
    about = machine() | {"onnxruntime": onnxruntime.__version__}
    generator, rows, found = np.random.default_rng(0), [], []
    for name, (shape, groups) in LAYERS.items():
        codes = generator.integers(-127, 128, shape)
        sessions = [make_session(codes, groups, as_bytes) for as_bytes in (False, True)]
        for batch in (1, 100):
            size = (batch, shape[1] * groups, SIDE, SIDE) if groups else (batch, shape[1])
            x = generator.random(size, np.float32) * 12
            floats, whole = (session.run(None, {"x": x})[0] for session in sessions)
            differing = int((floats != whole).sum())
            times = [[time_run(session, x) for session in sessions] for _ in range(given.repeats)]
            found.append({"layer": name, "batch": batch, "microseconds": times, "differing": differing})
            columns = [spread(column, 1) for column in zip(*times, strict=True)]
            ratio = spread([b / a for a, b in times], 2)
            rows.append([name, batch, *columns, ratio, differing])
    heads = ["layer", "rows", "floats, µs", "bytes, µs", "bytes / floats", "sums that differ"]
    publish("onnx_bytes", given.out, {"layers": found}, table(heads, rows), about)


if __name__ == "__main__":
    main()
