"""The model `cnn`: stacked replicas are single ones, and what is shipped is what was tested."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from qdtune import reader
from qdtune.datasets.load import default_root, load, on_disk
from qdtune.model import networks
from qdtune.model.factored import decompose
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.quantize import calibrate_alike, count_sizes, quantize
from qdtune.model.signed_file import split_file
from qdtune.spec.blocks import cnn_structure, list_cnn_layers
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.tasks import ACCURACY
from qdtune.training import train
from qdtune.training.cohort import Cohort, make_generator
from qdtune.training.step import StepShape, normalise
from qdtune.training.tensors import Tensors
from qdtune.training.train import make_cohort, train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_cohort import CPU, a_trial

SETTINGS = {"blocks": ("conv 4", "dw", "pool", "pw 6"), "padding": "same", "hidden": (), "val_size": 300}
SETTINGS |= {"dataset": "digits", "batch_norm": True, "batch_size": 48, "warmup": Warmup(epochs=1, lr=0.1)}


def a_cnn(**changes):
    return a_trial(**SETTINGS | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    loaded, _ = load(["digits"], tmp_path_factory.mktemp("data"), 300)
    return Tensors.of(loaded, CPU)


def a_cohort(trial, data, seeds, compile=False):
    shape = StepShape.of(trial, data.inputs, data.classes, "qat")
    replicas = []
    for seed in seeds:
        model = shape.build_undivided(seed)
        decompose(model, trial.depth, trial.activation, trial.factor_init, make_generator("init", seed))
        replicas.append(
            quantize(model, trial.weight_bits, trial.act_bits, trial.scale, granularity=trial.granularity)
        )
    calibrate_alike(replicas, normalise(data.train_x[:256]))
    return Cohort(replicas, shape, trial.qat, tuple(seeds), "qat", data, trial.batch_size, compile)


NOISE = 2.5e-7  # two units in the last place of a float32 of 1, about which scales of normalisations lie


def assert_moved_alike(before, found, expected, part=0.2):
    """A rounding that falls otherwise flips a code, which moves a weight by a small part of a step."""
    for name, tensor in expected.items():
        moved = (tensor - before[name]).abs().max().item()
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=part * moved + NOISE, msg=name)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"act_bits": 16, "granularity": "channel"}, 0.1),  # codes that flip are near
        ({"weight_bits": 1, "scale": "lsq"}, 0.02),  # weights are the same in both, so none flips
        ({"weight_bits": 32}, 1e-3),
    ],
)
def test_stacked_convolutions_equal_single_ones(changes, part, data):
    trial, seeds = a_cnn(batch_size=1000, **changes), (3, 0)  # one step: more would multiply the flip of a code
    together = a_cohort(trial, data, seeds)
    before = {name: p.clone() for name, p in together.params.items()}
    losses, accuracies = together.train(0), together.measure(ACCURACY, data.val_x, data.val_y)
    for k, seed in enumerate(seeds):
        alone = a_cohort(trial, data, (seed,))
        assert alone.train(0)[0] == pytest.approx(losses[k], rel=1e-3)
        own = {name: p[k] for name, p in together.params.items()}
        ahead = {name: p[k] for name, p in before.items()}
        assert_moved_alike(ahead, own, {name: p[0] for name, p in alone.params.items()}, part)
        assert alone.measure(ACCURACY, data.val_x, data.val_y)[0] == pytest.approx(accuracies[k], abs=0.01)


def test_only_networks_without_convolutions_are_compiled(data, monkeypatch):
    monkeypatch.setattr(train, "has_compiler", lambda: True)
    for trial, expected in ((a_cnn(qat=Qat(epochs=9_999)), False), (a_trial(qat=Qat(epochs=9_999)), True)):
        shape = StepShape.of(trial, data.inputs, data.classes, "qat")
        replicas = [shape.build_undivided(0)]
        assert make_cohort(replicas, replace(trial, seeds=(0,)), data, "qat", "auto").compile is expected
        assert make_cohort(replicas, replace(trial, seeds=(0,)), data, "qat", "always").compile


@pytest.mark.slow  # compiles
@pytest.mark.timeout(600)
def test_a_compiled_convolution_equals_the_eager_one(data):
    trial = a_cnn(act_bits=8, batch_size=1000, qat=Qat(epochs=2, lr=0.03, momentum=0.9))  # one step, see above
    eager, fast = (a_cohort(trial, data, (0, 1), compile=c) for c in (False, True))
    before = {name: p.clone() for name, p in eager.params.items()}
    assert eager.train(0) == pytest.approx(fast.train(0), rel=1e-4)
    assert_moved_alike(before, fast.params, eager.params)


@pytest.mark.parametrize(
    ("decomposed", "overhead", "bias"),
    [("all", "pow2", "all"), ("hidden", "float32", "all"), ("all", "int8", "none")],
)
def test_the_table_is_what_the_reader_finds(decomposed, overhead, bias, data):
    trial = a_cnn(depth=2, act_bits=8, weight_bits=4, decompose=decomposed, seeds=(0, 5), scale="lsq")
    trial = replace(trial, overhead=overhead, bias=bias)
    trial = replace(trial, qat=Qat(epochs=1, lr=0.003, optimizer="adam"), batch_norm="factors")
    kept = {}
    *_, report = train_configuration(trial, data, NoWarmups(), "never", lambda replicas, _: kept.update(replicas))
    for row in report["rows"]:
        alone = one_seed(report["weights"], row["seed"])
        model, network = reader.load(alone), kept[row["seed"]].eval()
        assert (model.program["model"], model.program["complete"], "between" in model.program) == ("cnn", True, False)
        found = model.logits(data.test_x.numpy())
        assert row["test_accuracy"] == float(np.mean(found.argmax(1) == data.test_y.numpy())) > 0.2
        assert row["size_bytes"] == trial.sizes.size_bytes == len(split_file(alone)[1])
        assert count_sizes(network) == trial.sizes
        with torch.no_grad():
            np.testing.assert_allclose(network(normalise(data.test_x)).numpy(), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("blocks", [("conv 5", "dw /2", "pw 7", "mean"), ("dw", "conv 9 5x5", "pool 3"), ("pool",)])
@pytest.mark.parametrize("norm", [False, True, "factors"])
@pytest.mark.parametrize("depth", [1, 3])
def test_the_ledger_by_arithmetic_is_that_of_the_network(blocks, norm, depth):
    layers = list_cnn_layers(blocks, None, "same", (3, 12, 9))
    bias, overhead = ("all", "int8") if depth == 1 else ("none" if norm else "all", "pow2")
    model = networks.build_cnn(layers, (6,), 4, batch_norm=bool(norm), bias=bias, seed=0)
    decompose(model, depth, decomposed="hidden", norm=norm == "factors", bias=bias)
    settings = {"granularity": "channel", "overhead": overhead}
    quantize(model, 3, 8, **settings)
    expected = cnn_structure(layers, (6,), 4, norm, bias=bias).sizes(depth, 3, 8, decompose="hidden", **settings)
    if depth == 1 and norm == "factors":  # without factors there is nothing to normalise
        expected = cnn_structure(layers, (6,), 4, True, bias=bias).sizes(1, 3, 8, **settings)
    assert count_sizes(model) == expected
    assert model.train()(torch.randn(5, 3 * 12 * 9)).shape == (5, 4)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not on_disk("mnist", default_root()), reason="MNIST is not on this disk")
def test_reader_and_graph_find_the_same_class_of_all_test_images_of_mnist():
    runtime = pytest.importorskip("onnxruntime")
    samples, _ = load(["mnist"], default_root(), 5000)
    phases = {phase: kind(epochs=1, lr=0.01, optimizer="adam") for phase, kind in (("warmup", Warmup), ("qat", Qat))}
    data = {"dataset": "mnist", "val_size": 5000, "resolution": 16, "batch_size": 500}
    blocks = {"blocks": ("conv 4", "dw", "pool", "dw", "pool"), "padding": "none"}
    trial = a_cnn(weight_bits=4, act_bits=4, scale="lsq", seeds=(0,), **data, **blocks, **phases)
    tensors = Tensors.of(samples, CPU)
    *_, report = train_configuration(trial, tensors, NoWarmups(), "never")
    model = reader.load(one_seed(report["weights"], 0))
    pixels = tensors.test_x.numpy()
    found = np.concatenate([model.logits(part) for part in np.split(pixels, 20)])
    (answers,) = runtime.InferenceSession(to_onnx(model, "t")).run(None, {"pixels": pixels})
    np.testing.assert_array_equal(answers, found)
    assert len(found) == 10_000
    assert report["rows"][0]["test_accuracy"] == float(np.mean(found.argmax(1) == tensors.test_y.numpy())) > 0.5
