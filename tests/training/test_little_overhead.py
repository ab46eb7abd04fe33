"""Networks with little overhead, as they are trained and shipped."""

import numpy as np
import pytest

from qdtune import reader
from qdtune.datasets.load import default_root, load, on_disk
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.spec.groups import Qat, Warmup
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_cohort import CPU
from tests.training.test_cohort import a_short_trial as a_trial


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not on_disk("mnist", default_root()), reason="MNIST is not on this disk")
@pytest.mark.parametrize(("overhead", "act_bits"), [("float16", 4), ("int8", None), ("pow2", 4)])
def test_table_reader_and_graph_find_the_same_class_of_all_test_images_of_mnist(overhead, act_bits):
    runtime = pytest.importorskip("onnxruntime")
    samples, _ = load(["mnist"], default_root(), 5000)
    phases = {phase: kind(epochs=1, lr=0.005, optimizer="adam") for phase, kind in (("warmup", Warmup), ("qat", Qat))}
    data = {"dataset": "mnist", "val_size": 5000, "resolution": 8, "batch_size": 500}
    net = {"depth": 1, "weight_bits": 2, "act_bits": act_bits, "scale": "lsq", "levels": "full", "batch_norm": True}
    trial = a_trial(**net, overhead=overhead, seeds=(0,), **data, **phases)
    tensors = Tensors.of(samples, CPU)
    *_, report = train_configuration(trial, tensors, NoWarmups(), "never")
    model, pixels = reader.load(one_seed(report["weights"], 0)), tensors.test_x.numpy()
    found = model.logits(pixels)
    (answers,) = runtime.InferenceSession(to_onnx(model, "t")).run(None, {"pixels": pixels})
    np.testing.assert_array_equal(answers.argmax(1), found.argmax(1))
    if act_bits:  # sums of floats may differ in their last bits
        np.testing.assert_array_equal(answers, found)
    assert report["rows"][0]["test_accuracy"] == float(np.mean(found.argmax(1) == tensors.test_y.numpy())) > 0.5
