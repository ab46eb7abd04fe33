"""Convolutions as a layer kind: split, quantised, counted, packed, read back and exported like linear layers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qdtune
from qdtune import reader
from qdtune.model import packed
from qdtune.model.factored import decompose
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.layers.conv import FactoredConv1d, FactoredConv2d, QuantConv2d
from qdtune.model.quantize import calibrate, count_sizes, quantize
from qdtune.model.quantizer import fake_quantize
from qdtune.model.signed_file import sign_file, split_file
from qdtune.reader import ReaderError

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
# Images of different brightness and contrast, so that means of channels differ.
PIXELS = np.random.RandomState(0).beta(np.geomspace(0.2, 5, 40)[:, None], 1, (40, 144))
PIXELS = (255 * PIXELS).astype(np.uint8)
ROWS = torch.from_numpy(PIXELS).float() / 127.5 - 1


def sequence():
    """Every operation of images: full and depthwise, strided, padded alike and otherwise on both sides, dilated."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 12, 12)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, (2, 3), padding="same", groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, (3, 2), stride=2, padding=(2, 0), dilation=(2, 1)),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.BatchNorm1d(16),
        nn.Unflatten(1, (2, 8)),
        nn.Conv1d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm1d(4),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def trained(net=sequence, depth=2, weight_bits=4, act_bits=None, activation="relu", norm=False, **settings):
    torch.manual_seed(0)
    model = decompose(net(), depth, activation, "isometry", norm=norm)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        model(ROWS)  # statistics, so that the rows differ in every layer
    quantize(model, weight_bits, act_bits, **settings)
    calibrate(model, ROWS)
    with torch.no_grad():
        model.train()(ROWS)
    return model.eval()


def pack(model):
    return one_seed(packed.pack_replicas({0: model}, "t", 144, 10, "mine:net"), 0)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_split_convolution_keeps_its_parameters_but_for_the_rounding_of_the_width(kind):
    random = np.random.RandomState(0)
    for _ in range(100):
        channels, outputs, depth = (int(random.randint(1, high)) for high in (40, 60, 6))
        kernel = tuple(int(n) for n in random.randint(1, 6, 1 if kind is nn.Conv1d else 2))
        with torch.device("meta"):
            layer = kind(channels, outputs, kernel, bias=False)
            chain = decompose(layer, depth)
        inputs = channels * int(np.prod(kernel))
        assert isinstance(chain, FactoredConv1d if kind is nn.Conv1d else FactoredConv2d)
        assert [factor.kernel_size for factor in chain.factors] == [kernel] + [(1,) * len(kernel)] * (depth - 1)
        numbers = sum(p.numel() for p in chain.parameters())
        width = chain.inner_dims[0] if depth > 1 else 0
        slope = inputs + outputs + 2 * (depth - 2) * width
        assert abs(numbers - inputs * outputs) <= (slope / 2 + depth if width > 1 else slope), (
            inputs,
            outputs,
            depth,
        )


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_svd_starts_from_the_convolution_that_is_split(depth):
    """Its matrix has the rank of the inner width, so nothing is dropped."""
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=1)
    width = decompose(nn.Conv2d(6, 10, 3), 3).inner_dims[0]
    with torch.no_grad():
        layer.weight.copy_((torch.randn(10, width) @ torch.randn(width, 54)).view(10, 6, 3, 3))
    x = torch.randn(4, 6, 9, 9)
    expected = layer(x)
    torch.testing.assert_close(decompose(layer, depth, factor_init="svd")(x), expected, rtol=1e-4, atol=1e-4)


def test_groups_and_frozen_convolutions_are_not_split_and_other_padding_stays_float():
    frozen = nn.Conv2d(2, 4, 3).requires_grad_(False)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), frozen, nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"))
    assert [type(layer) for layer in decompose(model, 2)] == [nn.Conv2d] * 3
    assert [type(layer) for layer in quantize(model, 2)] == [QuantConv2d, QuantConv2d, nn.Conv2d]
    assert count_sizes(model).other_bytes == 4 * (4 * 2 * 9 + 2)


def test_the_bytes_of_a_convolution_by_hand():
    whole = count_sizes(quantize(nn.Conv2d(3, 8, 3), 4, 8, granularity="channel"))
    assert (whole.params, whole.weight_bytes, whole.scale_bytes, whole.bias_bytes) == (224, 108, 36, 32)
    depthwise = count_sizes(quantize(nn.Conv2d(8, 8, 3, groups=8, bias=False), 2))
    assert (depthwise.params, depthwise.weight_bytes, depthwise.scale_bytes) == (72, 18, 4)
    split = decompose(nn.Conv2d(1, 8, 3), 2, norm=True)  # 9 * 8 / 17 = 4.2
    assert [tuple(factor.weight.shape) for factor in split.factors] == [(4, 1, 3, 3), (8, 4, 1, 1)]
    counted = count_sizes(quantize(split, 1))
    assert (counted.weight_bytes, counted.scale_bytes, counted.bias_bytes) == (5 + 4, 8, 32 + 8 * 4)


def test_gradients_are_those_of_a_plain_convolution_at_the_quantised_numbers():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x = torch.randn(5, 3, 7, 7, requires_grad=True)
    quantised = quantize(layer, 3, 3, "minmax", granularity="channel")
    quantised.train()(x).square().sum().backward(inputs=[x, quantised.weight])
    own, of_input = quantised.weight_quantizer, quantised.input_quantizer
    step, input_step = own.step_size(layer.weight.flatten(1)).detach(), of_input.step_size(x).detach()
    weight = fake_quantize(layer.weight.detach().flatten(1), step, own.grid).view_as(layer.weight).requires_grad_()
    inputs = fake_quantize(x.detach(), input_step, of_input.grid).requires_grad_()
    F.conv2d(inputs, weight, layer.bias, 2, 1).square().sum().backward()
    inside = (x.detach() / input_step).abs() <= of_input.high
    torch.testing.assert_close(x.grad, inputs.grad * inside)
    kept = (layer.weight.detach().flatten(1) / step).abs() <= own.high
    torch.testing.assert_close(layer.weight.grad, weight.grad * kept.view_as(weight))


CASES = [
    {"weight_bits": 2, "act_bits": 4, "scale": "lsq", "levels": "full", "granularity": "channel"},
    {"weight_bits": 1, "act_bits": 1, "depth": 1},
    {"weight_bits": 2, "act_bits": 8, "levels": "ternary", "scale": "minmax", "depth": 1},
    {"weight_bits": 16, "act_bits": 16, "granularity": "channel"},  # sums beyond float32
    {"weight_bits": 4},
    {"weight_bits": 32, "act_bits": 3},
    {"weight_bits": 32},
]


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_the_network_its_file_its_module_and_its_graph_answer_alike(settings):
    """To the last bit where inputs and weights have codes."""
    runtime = pytest.importorskip("onnxruntime")
    model = trained(**settings)
    blob = pack(model)
    read = reader.load(blob)
    assert read.program["complete"]
    assert len(split_file(blob)[1]) == count_sizes(model).size_bytes
    with torch.no_grad():
        expected = model(ROWS).numpy()
    assert np.median(expected.std(0)) > 1e-3, "constant answers prove nothing"
    found = {
        "reader": read.logits(PIXELS),
        "module": qdtune.load_into(sequence(), blob)(ROWS).numpy(),
        "onnx": runtime.InferenceSession(to_onnx(read, "t")).run(None, {"pixels": PIXELS})[0],
    }
    is_exact = settings.get("act_bits") and settings["weight_bits"] != 32
    for name, answers in found.items():
        # Means of pools are rounded once in the reader and the graph, and otherwise in torch.
        np.testing.assert_allclose(answers, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    if is_exact:
        np.testing.assert_array_equal(found["onnx"], found["reader"])


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(16, 16), (5, 15), (16, 12)])
def test_a_graph_sums_large_codes_of_a_wide_convolution_exactly(weight_bits, act_bits):
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    layers = nn.Unflatten(1, (36, 2, 2)), nn.Conv2d(36, 10, 5, padding=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = quantize(nn.Sequential(*layers), weight_bits, act_bits, "minmax")
    calibrate(model, ROWS)
    read = reader.load(pack(model.eval()))
    (found,) = runtime.InferenceSession(to_onnx(read, "t")).run(None, {"pixels": PIXELS})
    np.testing.assert_array_equal(found, read.logits(PIXELS))


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.MaxPool2d((3, 2), stride=(1, 3)),
        nn.AvgPool2d(5, 2),
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (3, 48)), nn.AdaptiveAvgPool1d(1)),
        nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 72)), nn.AvgPool1d(3, 2), nn.MaxPool1d(3)),
    ],
    ids=str,
)
def test_pooling_in_the_reader_and_the_graph(pool):
    runtime = pytest.importorskip("onnxruntime")
    model = nn.Sequential(nn.Unflatten(1, (1, 12, 12)), pool, nn.Flatten()).eval()
    expected = model(ROWS).numpy()
    blob = packed.pack_replicas(
        {0: nn.Sequential(*model, nn.Linear(expected.shape[1], 10))}, "t", 144, 10, "mine:net"
    )
    read = reader.load(one_seed(blob, 0))
    read.program["ops"].pop()  # without the linear layer, what is left is pooling
    read.program["outputs"] = expected.shape[1]
    np.testing.assert_allclose(read.logits(PIXELS), expected, rtol=1e-6, atol=1e-6)
    (found,) = runtime.InferenceSession(to_onnx(read, "t")).run(None, {"pixels": PIXELS})
    np.testing.assert_array_equal(found, read.logits(PIXELS))


def test_zeros_beside_a_one_bit_image_add_nothing():
    """No code is 0 there: all inputs are 1 or -1 times the step."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(layer.weight)
    model = quantize(nn.Sequential(nn.Unflatten(1, (1, 2, 2)), layer, nn.Flatten()), 1, 1).eval()
    x = torch.tensor([[0.5, 0.5, 0.5, -0.5]])
    calibrate(model, x)
    assert model(x).tolist() == [[1.0] * 4]  # each window holds the four pixels and five zeros
    read = reader.load(one_seed(packed.pack_replicas({0: model}, "t", 4, 4, "mine:net"), 0))
    assert read.logits(x.numpy()).tolist() == [[1.0] * 4]


def test_only_a_sequence_of_known_layers_runs_in_order():
    class Own(nn.Sequential):
        pass

    conv = nn.Conv2d(1, 2, 3)
    runs = {
        True: [sequence(), nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU())), nn.Linear(3, 3)],
        False: [
            Own(nn.Linear(4, 4)),
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),
            nn.Sequential(conv),  # of rows
            nn.Sequential(nn.Unflatten(1, (2, 8)), nn.Linear(8, 3)),  # not of rows
            nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.MaxPool2d(2, padding=1), nn.Flatten()),
            nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.MaxPool1d(2), nn.Flatten()),
        ],
    }
    for expected, models in runs.items():
        for model in models:
            assert packed.runs_in_order(model) is expected, model


def test_a_module_with_another_stride_is_refused():
    other = sequence()
    other[8].stride = (1, 2)
    with pytest.raises(
        ReaderError, match=r"8\.factors\.0\.weight has stride \[2, 2\] in the file, \[1, 2\] in the module"
    ):
        qdtune.load_into(other, pack(trained()))


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        (1, {"padding": [10**9] * 4}),
        (1, {"padding": [1, 1]}),
        (1, {"stride": [0, 1]}),
        (1, {"groups": 3}),
        (1, {"groups": 0}),
        (1, {"stride": [-1, -1]}),
        (10, {"kernel": [10**9, 1]}),
        (10, {"kernel": []}),
        (10, {"stride": [-1, 2]}),
        (0, {"shape": [10**9]}),
    ],
    ids=str,
)
def test_a_program_that_cannot_run_is_refused(place, changes):
    blob = pack(trained(depth=1))
    header, numbers = split_file(blob)
    program = json.loads(header["__metadata__"][reader.MODEL])
    program["ops"][place] |= changes
    header["__metadata__"][reader.MODEL] = json.dumps(program)
    with pytest.raises(ReaderError):
        reader.load(sign_file(header, numbers))
