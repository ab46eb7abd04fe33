"""A user's own model as ONNX: the graph answers as the loaded module does, and holds codes."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import qdtune
from qdtune.model.formats.packed import one_seed
from qdtune.model.packed import pack_replicas
from qdtune.model.quantize import calibrate, quantize
from qdtune.model.rounding import match_rows
from tests.model.test_load_into import Net, packed, trained

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
PIXELS = np.random.RandomState(0).randint(0, 256, (40, 16)).astype(np.uint8)
CASES = [
    {"weight_bits": 4},
    {"weight_bits": 32, "depth": 1},
    {"weight_bits": 2, "act_bits": 4, "scale": "lsq", "depth": 3},
    {"weight_bits": 1, "act_bits": 1, "activation": "identity"},
    {"weight_bits": 8, "act_bits": 8, "granularity": "channel"},
    {"weight_bits": 32, "act_bits": 8},
    {"weight_bits": 12, "act_bits": 12, "levels": "full"},
    {"weight_bits": 2, "act_bits": 4, "overhead": "pow2"},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_graph_answers_as_the_module_does(settings):
    blob = packed(trained(**settings))
    graph = qdtune.to_onnx(Net(), blob, PIXELS)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    module, x = qdtune.load_into(Net(), blob), torch.from_numpy(PIXELS).float() / 127.5 - 1
    for level in (
        runtime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        runtime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = runtime.SessionOptions()
        options.graph_optimization_level = level
        session = runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for rows in (1, 2, 40):
            (found,) = session.run(None, {"pixels": PIXELS[:rows]})
            assert match_rows(torch.from_numpy(found), module, x[:rows]).all()


def test_quantised_weights_are_codes_in_the_graph():
    model = onnx.load_from_string(qdtune.to_onnx(Net(), packed(trained(weight_bits=3))))
    kinds = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in model.graph.initializer}
    codes = {name for name, kind in kinds.items() if kind == "INT8"}
    assert {name.removeprefix("module.") for name in codes} == {
        f"{layer}.factors.{k}.codes" for layer in ("conv", "head", "factors.0") for k in (0, 1)
    }


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_a_dilated_convolution_that_keeps_its_sides_runs():
    """ONNX Runtime refuses a dilation together with SAME_UPPER, as which the exporter writes the padding."""

    def net():
        conv = nn.Conv2d(1, 3, (3, 2), padding="same", dilation=(1, 2))
        return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), conv, nn.Flatten(), nn.Linear(48, 4))

    x = torch.from_numpy(PIXELS).float() / 127.5 - 1
    model = quantize(net(), 4, 8)
    calibrate(model, x)
    blob = one_seed(pack_replicas({0: model.eval()}, "t", 16, 4, "mine:net"), 0)
    session = runtime.InferenceSession(qdtune.to_onnx(net(), blob, PIXELS))
    (found,) = session.run(None, {"pixels": PIXELS})
    assert match_rows(torch.from_numpy(found), qdtune.load_into(net(), blob), x).all()


class Counted(Net):
    def forward(self, x):
        return super().forward(x.view(len(x), 16))


class Branched(Net):
    def forward(self, x):
        y = super().forward(x)
        return y if float(x.sum()) < 0 else -y


class Flipped(Net):
    """Answers the rows that begin with a white pixel with the other sign, if there is one: a branch of a batch."""

    def forward(self, x):
        y = super().forward(x)
        is_white = x[:, :1] == 1
        return torch.where(is_white, -y, y) if bool(is_white.any()) else y


A_TENTH = np.full((40, 16), 100, np.uint8)
A_TENTH[5::10, 0] = 255


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_a_graph_is_refused_for_a_tenth_of_the_rows(settings):
    with pytest.raises(ValueError, match="must answer 40 rows as the module does, got other logits"):
        qdtune.to_onnx(Flipped(), packed(trained(Flipped, **settings)), A_TENTH)


def test_a_missing_package_is_told_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"qdtune\.to_onnx needs the package onnx: pip install onnx"):
        qdtune.to_onnx(Net(), packed(trained(weight_bits=4)))


def test_a_fault_of_the_forward_pass_is_not_one_of_the_exporter():
    class Broken(Net):
        def forward(self, x):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        qdtune.to_onnx(Broken(), packed(trained(weight_bits=4)))


@pytest.mark.parametrize(
    ("net", "pixels", "message"),
    [
        (Counted, None, r"the graph must answer 1 rows .* use x\.shape\[0\] in place of len\(x\)"),
        (Branched, np.concatenate([np.zeros((2, 16), np.uint8), np.full((30, 16), 255, np.uint8)]), "other logits"),
        (Net, PIXELS[:, 1:], r"pixels must be uint8 of shape \(rows, 16\), got uint8 of shape \(40, 15\)"),
        (Net, PIXELS / 255, "pixels must be uint8"),
    ],
)
def test_a_graph_that_answers_otherwise_is_never_returned(net, pixels, message):
    blob = packed(trained(net, weight_bits=4))
    with pytest.raises(ValueError, match=message):
        qdtune.to_onnx(net(), blob, pixels)


def test_what_the_exporter_cannot_follow_is_told():
    class Sorted(Net):
        def forward(self, x):
            return torch.unique_consecutive(super().forward(x), dim=0)[: x.shape[0]] + torch.linalg.det(
                torch.eye(2)
            ) * torch.special.bessel_j0(x[:, :1])

    with pytest.raises(ValueError, match="torch's exporter cannot follow this module: "):
        qdtune.to_onnx(Sorted(), packed(trained(Sorted, weight_bits=4)))


def test_a_file_works_by_its_path(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(packed(trained(lambda: nn.Linear(16, 4), weight_bits=4)))
    assert qdtune.to_onnx(nn.Linear(16, 4), path) == qdtune.to_onnx(nn.Linear(16, 4), path.read_bytes())
