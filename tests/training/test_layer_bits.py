"""Layers of several bits: counted, shared by the factors of a layer, trained, packed and read back."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from qdtune import reader
from qdtune.datasets.load import load
from qdtune.model.factored import decompose
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.layers.matrix import Quantized
from qdtune.model.networks import build_mlp
from qdtune.model.quantize import count_sizes, place_layers, quantize
from qdtune.model.signed_file import split_file
from qdtune.spec.structure import mlp_structure
from qdtune.training.cohort import Cohort
from qdtune.training.step import StepShape, which_are_float
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_cohort import CPU, assert_same, quantised
from tests.training.test_cohort import a_short_trial as a_trial

MIXED = {"hidden": (12, 8), "weight_bits": 2, "scale": "lsq", "batch_size": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    loaded, _ = load(["synthetic"], tmp_path_factory.mktemp("data"), 128)
    return Tensors.of(loaded, CPU)


@pytest.mark.parametrize("levels", ["ternary", "full"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [(8, 2, 4), (32, 1, 2), (1, 16, 32)], ids=str)
def test_bytes_by_arithmetic_are_those_of_the_tensors(bits, granularity, levels):
    for depth, decomposed in ((1, "all"), (3, "hidden")):
        model = decompose(build_mlp(20, (9, 7), 5, seed=0), depth, decomposed=decomposed)
        quantize(model, bits, None, "absmean", levels, granularity)
        expected = mlp_structure(20, (9, 7), 5).sizes(depth, bits, None, levels, granularity, decomposed)
        assert count_sizes(model) == expected
    inputs = mlp_structure(20, (9,), 5).sizes(1, 2, (8, None))
    assert inputs.scale_bytes == 4 * 3
    plain = mlp_structure(20, (9,), 5).sizes(1, (8, 2), None)
    assert (plain.weight_bytes, plain.scale_bytes) == (20 * 9 + -(-9 * 5 * 2 // 8), 8)  # by hand


def test_factors_have_the_bits_of_their_layer():
    model = decompose(nn.Sequential(nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Linear(8, 4), nn.Linear(4, 3)), 3)
    quantize(model, (8, 32, 1))
    found = {name: m.weight_bits for name, m in model.named_modules() if isinstance(m, Quantized)}
    assert found == {**{f"0.factors.{k}": 8 for k in range(3)}, **{f"3.factors.{k}": 1 for k in range(3)}}
    assert set(place_layers(model).values()) == {0, 1, 2}
    quantize(model, 4)  # once more, all alike
    assert {m.weight_bits for m in model.modules() if isinstance(m, Quantized)} == {4}
    with pytest.raises(ValueError, match=r"bits for each of 3 layers, got \(8, 1\)"):
        quantize(model, (8, 1))


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        ({"first_bits": 8, "last_bits": 4}, (8, 2, 4)),
        ({"first_bits": 32, "act_bits": 4}, (32, 2, 2)),
        ({"layer_bits": (1, 4, 32), "first_bits": 8, "levels": "full", "granularity": "channel"}, (1, 4, 32)),
        ({"layer_bits": (3, 3, 3)}, 3),
        ({"layer_act_bits": (8, 4, 32), "act_bits": 4, "layer_bits": (1, 4, 2)}, (1, 4, 2)),
    ],
    ids=str,
)
def test_what_is_shipped_has_the_bits_and_the_tested_accuracy(data, changes, bits):
    trial = a_trial(**MIXED, **changes)
    assert trial.bits == bits
    *_, report = train_configuration(trial, data, NoWarmups(), "never")
    each = bits if isinstance(bits, tuple) else (bits,) * 3
    for row in report["rows"]:
        blob = one_seed(report["weights"], row["seed"])
        assert len(split_file(blob)[1]) == trial.sizes.size_bytes
        model = reader.load(blob)
        linear = [op for op in model.program["ops"] if op["op"] == "linear"]
        assert [op["bits"] for op in linear] == [n for n in each for _ in range(trial.depth)]
        inputs = trial.input_bits if isinstance(trial.input_bits, tuple) else (trial.input_bits,) * 3
        assert [op["act_bits"] for op in linear] == [n for n in inputs for _ in range(trial.depth)]
        x = data.test_x.numpy()
        logits = model.logits(x)
        assert row["test_accuracy"] == (logits.argmax(1) == data.test_y.numpy()).mean()
        session = onnxruntime.InferenceSession(to_onnx(model, "t"), providers=["CPUExecutionProvider"])
        assert np.allclose(session.run(None, {"pixels": x})[0], logits, rtol=1e-4, atol=1e-4)


def test_replicas_of_mixed_bits_are_single_runs(data):
    trial = a_trial(**MIXED, layer_bits=(32, 2, 4), act_bits=4, layer_act_bits=(4, 32, 4))
    shape = StepShape.of(trial, data.inputs, data.classes, "qat")
    assert (shape.float_weights, shape.float_inputs) == ((True, False, False), (False, True, False))
    assert [which_are_float(bits) for bits in (4, 32, None, (32, 32), (None, None))] == [
        False,
        True,
        True,
        True,
        True,
    ]

    def cohort(seeds):
        alike = replace(trial, weight_bits=trial.bits, act_bits=trial.input_bits)
        replicas = quantised(alike, seeds, data)
        return Cohort(replicas, shape, trial.qat, seeds, "qat", data, trial.batch_size, False)

    stack, singles = cohort((0, 1)), [cohort((seed,)) for seed in (0, 1)]
    for one in (stack, *singles):
        one.train(0)
    for k, single in enumerate(singles):
        assert_same(stack, k, single)
    assert torch.isfinite(stack.params["0.factors.0.weight"]).all()
