"""Products of codes in an ONNX graph: as bytes where these hold them, and exact at the ends of every range."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest

from qdtune import reader
from qdtune.model.formats.onnx import to_onnx
from qdtune.reader import GRIDS

LEVELS = [
    (bits, levels) for bits in range(1, 9) for levels in (("symmetric", "full") if bits > 1 else ("symmetric",))
]


def make_model(bits, levels, act_bits, input_levels, inputs=40):
    """A linear layer whose codes lie at the ends of their range, and pixels that reach those of its inputs."""
    low, high, is_binary = GRIDS[bits, levels]
    ends = np.array([low, high, low, high, high, 0 if low <= 0 <= high and not is_binary else high])
    chosen = ends[np.arange(6 * inputs).reshape(6, inputs) // (1 + np.arange(6)[:, None]) % 6]
    chosen[0], chosen[1] = low, high  # the largest sums
    unsigned = (chosen - low) // (1 + is_binary)
    stream = (unsigned.reshape(-1, 1) >> np.arange(bits)) & 1
    stored = {
        "w": np.packbits(stream.astype(np.uint8).ravel(), bitorder="little"),
        "w.step": np.linspace(0.5, 1.5, 6, dtype=np.float32).reshape(6, 1),
        "s": np.array(1 / GRIDS[act_bits, input_levels][1], np.float32),
    }
    op = {"op": "linear", "shape": [6, inputs], "bits": bits, "levels": levels, "weight": "w", "step": "w.step"}
    op |= {"bias": None, "act_bits": act_bits, "input_step": "s", "input_levels": input_levels}
    program = {"model": "mlp", "inputs": inputs, "outputs": 6, "ops": [op]}
    found = reader.codes(stored, op)
    assert np.array_equal(found, chosen)
    tensors = stored | {"w": stored["w.step"] * found.astype(np.float32), "w.codes": found}
    rows = np.random.default_rng(bits).integers(0, 256, (50, inputs)).astype(np.uint8)
    rows[0], rows[1], rows[2, ::2], rows[2, 1::2] = 0, 255, 0, 255
    return reader.Model(program, stored, tensors), rows


def run(model, rows):
    blob = to_onnx(model, "t")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    return onnx.load_from_string(blob).graph, session.run(None, {"pixels": rows})[0]


def list_kinds(graph):
    return [node.op_type for node in graph.node]


@pytest.mark.parametrize("input_levels", ["symmetric", "unsigned"])
@pytest.mark.parametrize("act_bits", [1, 2, 5, 8])
def test_bytes_are_summed_exactly(act_bits, input_levels):
    for bits, levels in LEVELS:
        model, rows = make_model(bits, levels, act_bits, input_levels)
        graph, logits = run(model, rows)
        assert "MatMulInteger" in list_kinds(graph)
        assert np.array_equal(logits, model.logits(rows)), (bits, levels)


def test_sums_beyond_float32_are_those_of_the_reader():
    model, rows = make_model(8, "full", 8, "unsigned", inputs=3000)
    graph, logits = run(model, rows)
    assert "MatMulInteger" in list_kinds(graph)
    assert abs(logits[1] / model.tensors["s"]).max() > 2**24
    assert np.array_equal(logits, model.logits(rows))


@pytest.mark.parametrize(("bits", "act_bits"), [(9, 8), (8, 9), (16, 16)])
def test_larger_codes_are_floats(bits, act_bits):
    model, rows = make_model(bits, "symmetric", act_bits, "symmetric")
    graph, logits = run(model, rows)
    assert "MatMulInteger" not in list_kinds(graph)
    assert np.array_equal(logits, model.logits(rows))


@pytest.mark.parametrize(("bits", "kind"), [(1, "INT8"), (4, "INT8"), (7, "INT8"), (8, "UINT8")])
def test_no_kernel_may_saturate(bits, kind):
    """Two products of a uint8 and an int8 are added in 16 bits without VNNI; of two uint8 they are not."""
    model, rows = make_model(bits, "full" if bits > 1 else "symmetric", 8, "unsigned")
    graph, _ = run(model, rows)
    (product,) = [node for node in graph.node if node.op_type == "MatMulInteger"]
    low, high, _ = GRIDS[bits, "full" if bits > 1 else "symmetric"]
    assert kind == "UINT8" or 2 * 255 * max(-low, high) < 2**15
    given = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph)).graph.value_info
    kinds = {one.name: onnx.TensorProto.DataType.Name(one.type.tensor_type.elem_type) for one in given}
    assert (kinds[product.input[0]], kinds[product.input[1]]) == ("UINT8", kind)


def test_ends_are_tested():
    for (bits, levels), act_bits in itertools.product(LEVELS, (1, 8)):
        model, rows = make_model(bits, levels, act_bits, "symmetric")
        codes = reader.input_codes(model.first_inputs(rows), model.program["ops"][0], model.tensors)
        low, high, _ = GRIDS[act_bits, "symmetric"]
        assert (codes.min(), codes.max()) == (low, high)
        assert {*GRIDS[bits, levels][:2]} <= {*model.tensors["w.codes"].ravel().tolist()}
