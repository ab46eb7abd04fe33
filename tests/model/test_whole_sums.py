"""Sums of codes are whole numbers: training's evaluation, the reader and ONNX Runtime find the same, in any order."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from qdtune import reader
from qdtune.model.factored import decompose
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.packed import pack_replicas
from qdtune.model.quantize import calibrate, quantize
from qdtune.training.step import normalise

INPUTS, HIDDEN, OUTPUTS, ROWS = 784, 24, 10, 300
LEVELS = {1: ["symmetric"], 2: ["symmetric", "ternary", "full"], 4: ["full"], 8: ["symmetric", "full"]}
CASES = [
    (bits, act_bits, levels, granularity, depth, activation)
    for bits, names in LEVELS.items()
    for levels in names
    for act_bits in (1, 8, 16)
    for granularity, depth, activation in (
        ("channel", 1, "identity"),
        ("tensor", 2, "identity"),
        ("channel", 3, "relu"),
    )
]


def make_network(bits, act_bits, levels, granularity, depth, activation, scale="lsq", bias=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(INPUTS, HIDDEN, bias=bias), nn.ReLU(), nn.Linear(HIDDEN, OUTPUTS, bias=bias))
    model = decompose(model, depth, activation, "default", torch.Generator().manual_seed(1))
    model = quantize(model, bits, act_bits, scale, levels, granularity)
    calibrate(model, normalise(pixels(200)))
    return model.eval()


def pixels(rows, seed=3):
    return torch.randint(0, 256, (rows, INPUTS), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def run_onnx(model, x, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.intra_op_num_threads = level, 1
    session = onnxruntime.InferenceSession(to_onnx(model, "t"), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": x.numpy()})[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_three_programs_give_the_same_logits(case):
    network, x = make_network(*case), pixels(ROWS)
    shipped = reader.load(one_seed(pack_replicas({0: network}, "t", INPUTS, OUTPUTS), 0))
    logits = shipped.logits(x.numpy())
    with torch.no_grad():
        assert np.array_equal(network(normalise(x)).numpy(), logits)
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        assert np.array_equal(run_onnx(shipped, x, level), logits)


def test_sums_of_zero_are_zero():
    """At one bit, most samples have a sum that is really 0: here an even number of inputs that cancel."""
    network = make_network(1, 1, "symmetric", "tensor", 2, "identity")
    sums = []
    network[0].factors[1].register_forward_pre_hook(lambda layer, args: sums.append(args[0]))
    with torch.no_grad():
        network(normalise(pixels(ROWS)))
    assert ((sums[0] == 0).float().mean()) > 0.01
    assert (sums[0].abs()[sums[0] != 0] > 1e-4).all()


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", ["minmax", "lsq"])
@pytest.mark.parametrize("bias", [False, True])
def test_no_kernel_saturates_or_refuses(bits, scale, bias):
    """onnxruntime#16105, #25259: 8-bit products saturated at 16 bits; a Gemm of channels without bias was refused."""
    for granularity in ("tensor", "channel"):
        network = make_network(bits, 8, "symmetric", granularity, 1, "identity", scale, bias)
        shipped = reader.load(one_seed(pack_replicas({0: network}, "t", INPUTS, OUTPUTS), 0))
        x = pixels(ROWS)
        assert np.array_equal(run_onnx(shipped, x), shipped.logits(x.numpy()))


def test_a_layer_that_is_called_again_is_calibrated_on_all_its_inputs():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(INPUTS, INPUTS, bias=False), nn.Linear(INPUTS, OUTPUTS)

        def forward(self, x):
            for _ in range(3):
                x = torch.relu(self.a(x))
            return self.out(x)

    torch.manual_seed(0)
    model = quantize(Again(), 8, 8, "minmax")
    x = normalise(pixels(500))
    calibrate(model, x)
    assert model.a.input_quantizer.levels == "symmetric"  # the pixels are negative, what comes later is not
    largest = 127 * model.a.input_quantizer.running
    assert largest >= 0.99 * (x.max() - x.min()) / 2
