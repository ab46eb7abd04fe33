"""Convolutions as sums of shifted inputs: the same numbers and gradients as the library's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from qdtune.model.layers.conv import QuantConv2d
from qdtune.model.layers.shifted import MOST_TAPS, ShiftedSum, sums_of_shifts


@st.composite
def convolutions(draw):
    """A convolution in which each output channel sees one input channel, and an input (3 replicas, B, C, ...)."""
    axes = draw(st.integers(1, 2))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(axes))  # noqa: E731
    kernel, channels = each(1, 4), draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, channels]))
    stride, dilation = each(1, 3), each(1, 2)
    padding = draw(st.sampled_from(["valid", each(0, 5)] + ["same"] * (set(stride) == {1})))
    make = (nn.Conv1d, nn.Conv2d)[axes - 1]
    inputs = channels if groups == channels else 1
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    conv = make(inputs, channels, kernel, bias=draw(st.booleans()), **settings).double()
    sides = tuple(draw(st.integers(d * (k - 1) + 1, 9)) for k, d in zip(kernel, dilation, strict=True))
    return conv, torch.randn(3, 2, inputs, *sides, dtype=torch.float64)


def answer_and_slopes(conv, x):
    """Those of three replicas of a convolution, stacked."""
    params = {name: torch.stack([p, 2 * p, -p]).detach() for name, p in conv.named_parameters()}

    def loss(params, x):
        return functional_call(conv, params, (x,)).sin().sum()

    of_params, of_x = vmap(grad(loss, argnums=(0, 1)))(params, x)
    return [vmap(lambda p, x: functional_call(conv, p, (x,)))(params, x), of_x, *of_params.values()]


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # of the library, about its own copy
@given(convolutions())
def test_answers_and_gradients_are_those_of_the_library(case):
    conv, x = case
    expected = answer_and_slopes(conv, x)
    with sums_of_shifts(conv):
        assert "_conv_forward" in vars(conv)
        found = answer_and_slopes(conv, x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


class Halved(nn.Conv2d):
    """Computes something else, as a user's layer may."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / 2, bias)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 2, 3),  # each output sees both inputs
        nn.Conv2d(2, 4, 3, groups=2),  # two outputs for each input
        nn.Conv2d(4, 2, 3, groups=2),
        nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(1, 1, MOST_TAPS + 1),
        Halved(1, 1, 3),
        nn.Linear(1, 1),
    ],
    ids=str,
)
def test_other_layers_stay(conv):
    with sums_of_shifts(nn.Sequential(conv)):
        assert "_conv_forward" not in vars(conv)


def test_it_ends_with_the_block_even_after_an_error(monkeypatch):
    conv = nn.Conv2d(3, 3, 3, groups=3)
    layer = QuantConv2d(conv, 4, 8, "lsq", "symmetric", "tensor")
    calls = []
    monkeypatch.setattr(ShiftedSum, "apply", lambda *args: calls.append(1) or torch.zeros(1, 3, 1, 1))
    with sums_of_shifts(layer):
        layer(torch.randn(1, 3, 3, 3))
    assert calls == [1], "a quantised layer takes it, too"
    with pytest.raises(AttributeError), sums_of_shifts(layer):
        layer("no tensor")
    layer(torch.randn(1, 3, 3, 3))
    assert calls == [1]
