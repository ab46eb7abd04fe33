"""What runs in a step that is not compiled computes what the library and `quantizer` compute."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from qdtune.model.layers.conv import QuantConv1d, QuantConv2d
from qdtune.model.quantizer import Quantizer
from qdtune.training.fast_forms import FORMS, FastForms, with_fast_forms

REPLICAS = 3


@st.composite
def convolutions(draw):
    """A convolution and an input (K, B, C, ...)."""
    axes, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2]))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, stride, dilation = each(1, 4), each(1, 3), each(1, 2)
    inputs, outputs = (groups * draw(st.integers(1, 2)) for _ in range(2))
    padding = draw(st.sampled_from(["valid", each(0, 2)] + ["same"] * (set(stride) == {1})))
    make = (nn.Conv1d, nn.Conv2d)[axes - 1]
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    conv = make(inputs, outputs, kernel, bias=draw(st.booleans()), **settings).double()
    sides = tuple(draw(st.integers(d * (k - 1) + 1, 9)) for k, d in zip(kernel, dilation, strict=True))
    return conv, torch.randn(REPLICAS, 2, inputs, *sides, dtype=torch.float64)


@st.composite
def pools(draw):
    axes = draw(st.integers(1, 2))
    make = (nn.MaxPool1d, nn.MaxPool2d)[axes - 1]
    kernel = draw(st.integers(1, 3))
    stride, ceil = draw(st.sampled_from([None, 1, 2])), draw(st.booleans())
    pool = make(kernel, stride, padding=draw(st.integers(0, kernel // 2)), ceil_mode=ceil)
    channels = [3] if draw(st.booleans()) else []  # without them, samples count as channels
    # Whole numbers, so that several are the largest of a window.
    sides = [draw(st.integers(3, 7)) for _ in range(axes)]
    return pool, torch.randint(3, (REPLICAS, 2, *channels, *sides)).double()


@st.composite
def norms(draw):
    axes = draw(st.integers(0, 2))
    make = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[axes]
    norm = make(3, affine=draw(st.booleans()), momentum=draw(st.sampled_from([0.1, 0.7]))).double()
    if norm.affine and draw(st.booleans()):
        norm.bias = None
    x = torch.randn(REPLICAS, 4, 3, *[draw(st.integers(2, 4)) for _ in range(axes)], dtype=torch.float64)
    return norm.train(draw(st.booleans())), x


@st.composite
def averages(draw):
    size = draw(st.sampled_from([1, (1, 1), (2, 1), 2]))
    return nn.AdaptiveAvgPool2d(size), torch.randn(REPLICAS, 2, 3, 4, 5, dtype=torch.float64)


def answer_and_slopes(module, x):
    """The outputs of three replicas, their gradients, and what their buffers are then."""
    params = {name: torch.stack([p, 2 * p, -p]).detach() for name, p in module.named_parameters()}
    buffers = {name: torch.stack([b, b, b]) for name, b in module.named_buffers()}

    def loss(params, x, buffers):
        buffers = {name: b.clone() for name, b in buffers.items()}
        made = functional_call(module, (params, buffers), (x,))
        return made.sin().sum(), (made, buffers)

    slopes, (made, after) = vmap(grad(loss, argnums=(0, 1), has_aux=True))(params, x, buffers)
    return [made, slopes[1], *slopes[0].values(), *after.values()]


def assert_alike(module, x, **tolerance):
    expected = answer_and_slopes(module, x)
    with FastForms():
        found = answer_and_slopes(module, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of the library, about its own copy
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the library, about its own loops
@given(st.one_of(convolutions(), pools(), norms(), averages()))
def test_answers_and_gradients_are_those_of_the_library(case):
    assert_alike(*case)


@given(
    st.integers(1, 8),
    st.sampled_from(["lsq", "absmean", "minmax"]),
    st.sampled_from([None, "rows", "observe"]),
    st.sampled_from([(4, 5), (4, 2, 3, 3)]),
)
def test_fake_quantisation_has_the_gradients_that_autograd_finds(bits, scale, kind, shape):
    rows = 4 if kind == "rows" and len(shape) == 2 else None
    quantizer = Quantizer(bits, scale, rows=rows, observe=kind == "observe").double()
    x = torch.randn(REPLICAS, *shape, dtype=torch.float64)
    quantizer.start(x[0])
    with torch.no_grad():
        quantizer.step.fill_(0.5)
    x.flatten(2)[:, 0, :2] = torch.stack([quantizer.low, quantizer.high]) * 0.5  # the ends of the grid themselves
    assert_alike(quantizer, x)


@pytest.mark.parametrize("make", [QuantConv1d, QuantConv2d])
@pytest.mark.parametrize("is_data", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_step_of_data_has_the_same_gradient_without_that_of_the_data(make, is_data, groups):
    plain = (nn.Conv1d if make is QuantConv1d else nn.Conv2d)(2, 4, 3, padding=1, groups=groups)
    conv = make(plain, 4, 3, "lsq", "full", "tensor").double()
    x = torch.randn(REPLICAS, 5, 2, *[6] * conv.axes, dtype=torch.float64)
    conv.input_quantizer.start(x)
    params = {name: torch.stack([p, 1.5 * p, 0.5 * p]).detach() for name, p in conv.named_parameters()}
    buffers = {name: torch.stack([b, b, b]) for name, b in conv.named_buffers()}
    calls = []
    conv._convolve_data = lambda *given, own=conv._convolve_data: calls.append(1) or own(*given)

    def loss(params, buffers, x):
        moved = (
            x if is_data else x + 0 * params["weight"].sum()
        )  # its gradient is needed, because the weight is trained
        buffers = {name: b.clone() for name, b in buffers.items()}
        return functional_call(conv, (params, buffers), (moved,)).sin().sum()

    found = vmap(grad(loss))(params, buffers, x)
    assert bool(calls) is is_data
    del conv._convolve_data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Quantizer, "linearise", None)
        patch.setattr(make, "forward", lambda self, x: self.multiply(self._conv_forward, x, -1 - self.axes))
        expected = vmap(grad(loss))(params, buffers, x)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name])
    assert found["input_quantizer.step"].abs().min() > 0


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of the library, about its own loops
@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda x, w: F.conv2d(x, w[:, :2], padding=1), (2, 6, 6)),  # one image
        (lambda x, w: F.conv2d(input=x, weight=w, stride=2), (5, 4, 6, 6)),
        (lambda x, w: vmap(lambda one: F.conv2d(one, w))(x), (5, 4, 6, 6)),
        (lambda x, w: F.max_pool2d(x, 2, stride=[]), (5, 4, 6, 6)),
        (lambda x, w: F.max_pool1d(x.flatten(2), 3), (5, 4, 6, 6)),
        (lambda x, w: F.adaptive_avg_pool2d(x, (1, None)), (5, 4, 6, 6)),
        (lambda x, w: F.conv2d(x, w, torch.ones(1)), (5, 4, 6, 6)),  # raises
        (lambda x, w: F.max_pool2d(x, 2, stride=0), (5, 4, 6, 6)),  # raises
        (lambda x, w: F.batch_norm(x, w[:4, 0, 0, 0], w[:4, 0, 0, 1], w[:4, 0, 1, 0], None, True), (1, 4, 1, 1)),
    ],
)
def test_what_is_unusual_is_as_in_the_library(call, shape):
    x, weight = torch.randn(REPLICAS, *shape).double(), torch.randn(REPLICAS, 4, 4, 3, 3).double()
    if len(shape) == 3:
        x, weight = x[:, :2], weight

    def ask():
        try:
            return vmap(call)(x, weight.clone())
        except Exception as error:
            return type(error)

    expected = ask()
    with FastForms():
        found = ask()
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
    else:
        assert found is expected


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch, about its own jvp
@pytest.mark.parametrize("differentiate", [grad, lambda f: lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]])
@pytest.mark.parametrize("layer", [F.conv2d, lambda x, w: F.max_pool2d(x * w.sum(), 2)])
def test_networks_that_use_their_own_gradients_keep_the_forms_of_the_library(layer, differentiate):
    x, weight = torch.randn(REPLICAS, 2, 4, 6, 6).double(), torch.randn(REPLICAS, 4, 4, 3, 3).double()

    def energy(weight, x):
        return differentiate(lambda z: layer(z, weight).tanh().sum())(x).square().sum()

    expected = vmap(grad(energy))(weight, x)
    ask = with_fast_forms(lambda: vmap(grad(energy))(weight, x))
    for _ in range(2):
        torch.testing.assert_close(ask(), expected)
    assert expected.abs().max() > 0


def test_the_forms_are_those_that_users_networks_call(monkeypatch):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
    signal = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.MaxPool1d(2))
    called = set()

    def spy(function, form):
        return lambda *args, **kwargs: called.add(function) or form(*args, **kwargs)

    for function, form in list(FORMS.items()):
        monkeypatch.setitem(FORMS, function, spy(function, form))
    quantizer = Quantizer(2, "lsq")
    with FastForms():
        model(torch.randn(2, 1, 6, 6))
        signal(torch.randn(2, 1, 6))
        quantizer(torch.randn(3))
        F.conv2d(input=torch.randn(1, 1, 3, 3), weight=torch.randn(1, 1, 1, 1))
    assert called == set(FORMS)
    called.clear()
    copy.deepcopy(model)(torch.randn(2, 1, 6, 6))
    assert not called, "only while it is on"
