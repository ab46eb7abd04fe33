"""Networks with convolutions, of a user's own: all layers are split and quantised, and the files answer as tested."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import qdtune
from qdtune import plugins, reader
from qdtune.model.chain import Chain
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.layers.matrix import Quantized
from qdtune.model.rounding import match_rows
from qdtune.model.signed_file import split_file
from qdtune.plugins import Grant
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.sweep.prepare import call_own_data
from qdtune.training.own_model import describe_own_model
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_real_networks import SWEEP, TESTS


def trained(data, model, task):
    """The trial of depth 2 after an epoch, its file, its tensors, and its network."""
    plugins.allow(Grant(("real_networks",), (str(TESTS / "data"),)))
    text = SWEEP.replace("DATA", data).replace("MODEL", model).replace("TASK", task)
    spec, samples = call_own_data(loads(text.encode(), "real.yaml"), TESTS)
    (trial, *_) = [one for one in plan(describe_own_model(spec, samples)).trials if one.depth == 2]
    trial = replace(trial, weight_bits=4, act_bits=8, batch_size=44, seeds=(0,), granularity="channel")
    trial = replace(trial, warmup=Warmup(epochs=1, lr=0.01), qat=Qat(epochs=1))
    tensors, networks = Tensors.of(samples, torch.device("cpu")), []
    *_, report = train_configuration(
        trial, tensors, NoWarmups(), "never", lambda replicas, _: networks.append(replicas[0])
    )
    return trial, one_seed(report["weights"], 0), tensors, networks[0].eval(), report["rows"][0]


@pytest.mark.parametrize(
    ("data", "model", "task", "counts", "is_complete"),
    [
        ("keywords", "ds_cnn", "classification", (6, 4), True),  # one convolution, four pointwise, head; depthwise
        ("pictures", "resnet8", "classification", (10, 0), False),
        ("machine_sounds", "autoencoder", "autoencoder", (10, 0), True),
        ("heartbeats", "heartbeat_cnn", "classification", (13, 0), False),
    ],
)
def test_every_layer_is_split_or_quantised_and_read_back(data, model, task, counts, is_complete):
    trial, alone, tensors, network, row = trained(data, model, task)
    chains = [module for module in network.modules() if isinstance(module, Chain)]
    inside = {factor for chain in chains for factor in chain.factors}
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    assert all(isinstance(layer, Quantized) for layer in layers)
    assert (len(chains), len([layer for layer in layers if layer not in inside])) == counts
    assert trial.structure.other_bytes == 0
    assert row["size_bytes"] == trial.sizes.size_bytes == len(split_file(alone)[1])

    read, x = reader.load(alone), tensors.normalise(tensors.test_x)
    assert read.is_complete is is_complete
    loaded = qdtune.load_into(_build(model, trial, tensors), alone)
    assert match_rows(network(x), loaded, x).all()
    if is_complete:
        runtime = pytest.importorskip("onnxruntime")
        found = read.logits(tensors.test_x.numpy())
        assert match_rows(torch.from_numpy(found), loaded, x).all()
        (answers,) = runtime.InferenceSession(to_onnx(read, "t")).run(None, {"rows": tensors.test_x.numpy()})
        np.testing.assert_array_equal(answers, found)
    else:
        pytest.importorskip("onnx")
        assert qdtune.to_onnx(_build(model, trial, tensors), alone)  # compared with the module before it is returned


def _build(model, trial, tensors):
    return plugins.load_function(f"real_networks:{model}")(
        tensors.inputs, trial.hidden, trial.structure.layers[-1].outputs, seed=0
    )
